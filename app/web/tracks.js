// What the overlay shows at any moment: tracked boxes, skeletons and texts between two results. No DOM.

/** @import { Box, CameraMotion, Detection, Motion, Pose, Result } from "./protocol.js" */

/** @typedef {{x: number, y: number}} Point */
/** @typedef {{turn: Point, shift: Point}} Similarity */
/**
 * @typedef {object} SceneObject
 * @property {number} class_id
 * @property {string} class_name
 * @property {number} confidence
 * @property {number | null} track_id
 * @property {Box} box In pixels of the scene.
 * @property {number} alpha Opacity, 0 to 1.
 */
/**
 * @typedef {object} ScenePose
 * @property {number} confidence
 * @property {number | null} track_id
 * @property {Box} box
 * @property {{name: string, x: number, y: number, confidence: number}[]} keypoints
 * @property {number} alpha
 */
/** @typedef {import("./protocol.js").Text & {stale: boolean, alpha: number}} SceneText */
/** @typedef {{columns: number, rows: number, vectors: Float32Array}} Flow Pairs of dx and dy in pixels, row by row. */
/**
 * @typedef {object} Scene What the overlay draws at one moment, in pixels of the shown image.
 * @property {number} width
 * @property {number} height
 * @property {SceneObject[]} objects
 * @property {ScenePose[]} poses
 * @property {SceneText[]} texts
 * @property {{score: number, direction_deg: number | null, moving_fraction: number} | null} motion
 * @property {Flow | null} flow Motion without the camera's.
 * @property {number} flowAlpha
 */
/**
 * A text and its position at the latest result. Positions are relative to the centre of the image, in widths of the image.
 * @typedef {object} TrackedText
 * @property {string} text
 * @property {number} confidence
 * @property {Point[]} corners
 * @property {Point} offset The last correction of its position, which fades out …
 * @property {number} correctedAt … from this time on.
 */
/**
 * @typedef {object} Track
 * @property {string} kind
 * @property {number | null} id
 * @property {Interpolation} position x1, y1, x2, y2, then x, y of each keypoint, as shares of the image.
 * @property {Detection | Pose} last
 * @property {number} bornAt
 * @property {number | null} lostAt
 */

const FADE_IN_MS = 80;
const FADE_OUT_MS = 250;
const HOLD_MS = 400; // without further results the last one counts as current for at least this long …
const HOLD_RESULTS = 2; // … or for the time that this many results take
const TEXT_STALE_MS = 1500;
const SAME_OBJECT = 0.3; // IoU
const SAME_TEXT = 0.2; // widths of the image: an equal text farther away is another one

/**
 * Computes the scene between two results: boxes and skeletons move with their tracks, texts with the camera, and everything
 * fades as it ages or when it is no longer detected. It has no clock: the caller passes times of `performance.now()`.
 */
export class Tracks {
  /** @type {Track[]} */
  #objects = [];
  /** @type {Track[]} */
  #poses = [];
  /** @type {TrackedText[]} */
  #texts = [];
  /** Capture time of the frame in which the texts were read. */
  #readAt = 0;
  #camera = new CameraPath();
  /** @type {Result | null} */
  #result = null;
  /** Capture time of the result's frame. */
  #capturedAt = 0;
  /** @type {Flow | null} */
  #flow = null;
  /**
   * The flow in pixels of the image. The object stays the same while nothing changes, so that its drawing can be cached.
   * @type {{flow: Flow, across: number, down: number} | null}
   */
  #shown = null;
  #observedAt = 0;
  #intervalMs = HOLD_MS;

  /**
   * Updates the tracks and texts from a result.
   * @param {Result} result
   * @param {number} capturedAt Capture time of its frame.
   * @param {number} now
   */
  observe(result, capturedAt, now) {
    if (this.#observedAt) this.#intervalMs += 0.3 * (now - this.#observedAt - this.#intervalMs);
    const { image, objects, poses, motion } = result;
    this.#observedAt = now;
    const before = this.#textsAt(now);
    this.#camera.observe(motion && image.width ? similarity(motion.camera, image.width) : null, capturedAt, now);
    const readMs = result.stages.ocr?.age_ms ?? 0;
    const { motion: moved, capturedAt: takenAt } = this.#camera.since(readMs);
    this.#readAt = Math.min(takenAt, capturedAt - readMs);
    this.#texts = result.texts.map((text) => trackedText(text, image, moved));
    for (const text of this.#texts) keepPosition(text, before, now);
    this.#result = result;
    this.#capturedAt = capturedAt;
    this.#flow = flowOf(motion, image);
    this.#shown = null;
    this.#objects = follow(this.#objects, objects, (object) => `object ${object.class_id}`, image, capturedAt, now);
    this.#poses = follow(this.#poses, poses, () => "pose", image, capturedAt, now);
  }

  /** Forgets everything. */
  clear() {
    this.#objects = [];
    this.#poses = [];
    this.#texts = [];
    this.#camera.clear();
    this.#result = this.#flow = this.#shown = null;
    this.#observedAt = 0;
  }

  /**
   * The scene to draw at a time.
   * @param {number} now
   * @param {{width: number, height: number}} size Of the shown image, pixels.
   * @returns {Scene}
   */
  at(now, { width, height }) {
    const result = this.#result;
    const silence = now - this.#observedAt - Math.max(HOLD_MS, HOLD_RESULTS * this.#intervalMs);
    const present = result ? 1 - clamp(silence / FADE_OUT_MS) : 0;
    const shown = (/** @type {Track} */ track) => {
      return present * visibility(track, now) * freshness(now - track.position.seenAt);
    };
    const stale = (result?.stages.ocr?.status === "stale" && (result.stages.ocr.age_ms ?? 0) > TEXT_STALE_MS) || false;
    const across = width / (result?.image.width ?? 1);
    const down = height / (result?.image.height ?? 1);
    return {
      width,
      height,
      objects: this.#objects.map((track) => sceneObject(track, now, width, height, shown(track))).filter(visible),
      poses: this.#poses.map((track) => scenePose(track, now, width, height, shown(track))).filter(visible),
      texts: this.#sceneTexts(now, width, height, present).map((text) => ({ ...text, stale })).filter(visible),
      motion: present > 0 ? (result?.motion ?? null) : null,
      flow: present > 0 ? this.#scaledFlow(across, down) : null,
      flowAlpha: present * freshness(now - this.#capturedAt),
    };
  }

  /**
   * The texts at their positions at a time, moved on by the camera's predicted motion.
   * @param {number} now
   * @returns {TrackedText[]}
   */
  #textsAt(now) {
    if (!this.#texts.length) return [];
    const motion = this.#camera.ahead(now);
    return this.#texts.map((text) => {
      const left = remaining(text.correctedAt, now);
      const corners = text.corners.map((corner) => {
        const { x, y } = applied(motion, corner);
        return { x: x + text.offset.x * left, y: y + text.offset.y * left };
      });
      return { ...text, corners };
    });
  }

  /**
   * The texts that lie in the image.
   * @param {number} now
   * @param {number} width
   * @param {number} height
   * @param {number} present
   */
  #sceneTexts(now, width, height, present) {
    const alpha = present * textFreshness(now - this.#capturedAt, now - this.#readAt);
    return this.#textsAt(now)
      .map(({ text, confidence, corners }) => {
        const polygon = corners.map(({ x, y }) => {
          return /** @type {[number, number]} */ ([(x + 0.5) * width, y * width + height / 2]);
        });
        return { text, confidence, polygon, alpha };
      })
      .filter(({ polygon }) => reaches(polygon, width, height));
  }

  /**
   * The flow in pixels of the shown image.
   * @param {number} across Pixels of the shown image per pixel of the frame, horizontally.
   * @param {number} down Pixels of the shown image per pixel of the frame, vertically.
   */
  #scaledFlow(across, down) {
    if (!this.#flow) return null;
    if (this.#shown?.across !== across || this.#shown.down !== down) {
      this.#shown = { flow: scaled(this.#flow, across, down), across, down };
    }
    return this.#shown.flow;
  }
}

/**
 * Updates the tracks from a result: moves those detected again, begins new ones, lets missing ones fade.
 * @template {Detection | Pose} T
 * @param {Track[]} tracks
 * @param {T[]} found
 * @param {(detection: T) => string} kindOf
 * @param {{width: number, height: number}} image
 * @param {number} capturedAt
 * @param {number} now
 * @returns {Track[]}
 */
function follow(tracks, found, kindOf, image, capturedAt, now) {
  const left = new Set(tracks);
  const kept = found.map((detection) => {
    const values = vector(detection, image);
    const kind = kindOf(detection);
    const id = detection.track_id;
    const track = match(left, kind, id, values, now);
    if (!track) {
      return { kind, id, position: new Interpolation(values, capturedAt), last: detection, bornAt: now, lostAt: null };
    }
    left.delete(track);
    track.position.observe(values, capturedAt, now);
    return Object.assign(track, { id: id ?? track.id, last: detection, lostAt: null });
  });
  const fading = [...left].filter((track) => track.lostAt === null || now - track.lostAt < FADE_OUT_MS);
  for (const track of fading) track.lostAt ??= now;
  return [...kept, ...fading];
}

/**
 * The track with the same id. For a detection without an id, or with a new one, the track that overlaps it most.
 * @param {Set<Track>} tracks
 * @param {string} kind
 * @param {number | null} id
 * @param {number[]} values
 * @param {number} now
 */
function match(tracks, kind, id, values, now) {
  let best = null;
  let most = SAME_OBJECT;
  for (const track of tracks) {
    if (track.kind !== kind) continue;
    if (id !== null && track.id === id) return track;
    if (id !== null && track.id !== null) continue;
    const overlap = iou(track.position.at(now), values);
    if (overlap > most) [best, most] = [track, overlap];
  }
  return best;
}

/**
 * The coordinates of a detection as shares of the image.
 * @param {Detection | Pose} detection
 * @param {{width: number, height: number}} image
 */
function vector({ box, ...detection }, { width, height }) {
  const values = [box.x1 / width, box.y1 / height, box.x2 / width, box.y2 / height];
  if ("keypoints" in detection) for (const point of detection.keypoints) values.push(point.x / width, point.y / height);
  return values;
}

/**
 * Intersection over union of two boxes.
 * @param {ArrayLike<number>} a x1, y1, x2, y2.
 * @param {ArrayLike<number>} b
 */
function iou(a, b) {
  const across = Math.min(a[2], b[2]) - Math.max(a[0], b[0]);
  const down = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
  if (across <= 0 || down <= 0) return 0;
  const shared = across * down;
  return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared);
}

/**
 * The opacity of a track that has just begun or was lost.
 * @param {Track} track
 * @param {number} now
 */
function visibility({ bornAt, lostAt }, now) {
  const out = lostAt === null ? 1 : 1 - clamp((now - lostAt) / FADE_OUT_MS);
  return out * clamp((now - bornAt + FADE_IN_MS / 4) / FADE_IN_MS);
}

/**
 * @param {Track} track
 * @param {number} now
 * @param {number} width
 * @param {number} height
 * @param {number} alpha
 * @returns {SceneObject}
 */
function sceneObject(track, now, width, height, alpha) {
  const { class_id, class_name, confidence } = /** @type {Detection} */ (track.last);
  return { class_id, class_name, confidence, track_id: track.id, box: box(track.position.at(now), width, height), alpha };
}

/**
 * @param {Track} track
 * @param {number} now
 * @param {number} width
 * @param {number} height
 * @param {number} alpha
 * @returns {ScenePose}
 */
function scenePose(track, now, width, height, alpha) {
  const { keypoints, confidence } = /** @type {Pose} */ (track.last);
  const values = track.position.at(now);
  const points = keypoints.map((point, i) => ({
    name: point.name,
    x: values[4 + 2 * i] * width,
    y: values[5 + 2 * i] * height,
    confidence: point.confidence,
  }));
  return { confidence, track_id: track.id, box: box(values, width, height), keypoints: points, alpha };
}

/**
 * @param {Float64Array} values
 * @param {number} width
 * @param {number} height
 * @returns {Box}
 */
function box(values, width, height) {
  const [x1, y1, x2, y2] = values;
  return { x1: clamp(x1) * width, y1: clamp(y1) * height, x2: clamp(x2) * width, y2: clamp(y2) * height };
}

/**
 * @param {Result["texts"][number]} text
 * @param {{width: number, height: number}} image Size of the result's frame.
 * @param {Similarity} motion The camera's, since the text was read.
 * @returns {TrackedText}
 */
function trackedText({ text, confidence, polygon }, { width, height }, motion) {
  const corners = polygon.map(([x, y]) => applied(motion, { x: x / width - 0.5, y: (y - height / 2) / width }));
  return { text, confidence, corners, offset: { x: 0, y: 0 }, correctedAt: 0 };
}

/**
 * Lets a text that is shown already move to its new position gradually, so that it does not jump.
 * @param {TrackedText} text Gets the offset from its new position to the shown one.
 * @param {TrackedText[]} before The shown texts; the matched one is removed, so that it is matched once.
 * @param {number} now
 */
function keepPosition(text, before, now) {
  const to = centre(text.corners);
  const off = (/** @type {TrackedText} */ other) => {
    const from = centre(other.corners);
    return { x: from.x - to.x, y: from.y - to.y };
  };
  const far = (/** @type {TrackedText} */ other) => Math.hypot(off(other).x, off(other).y);
  const same = before.filter((other) => other.text === text.text && far(other) < SAME_TEXT);
  if (!same.length) return;
  const nearest = same.reduce((best, other) => (far(other) < far(best) ? other : best));
  before.splice(before.indexOf(nearest), 1);
  Object.assign(text, { offset: off(nearest), correctedAt: now });
}

/** @param {Point[]} corners */
function centre(corners) {
  const sum = corners.reduce((all, { x, y }) => ({ x: all.x + x, y: all.y + y }), { x: 0, y: 0 });
  return { x: sum.x / corners.length, y: sum.y / corners.length };
}

/**
 * Whether any part of the polygon lies in the image.
 * @param {[number, number][]} polygon
 * @param {number} width
 * @param {number} height
 */
function reaches(polygon, width, height) {
  const [xs, ys] = [polygon.map(([x]) => x), polygon.map(([, y]) => y)];
  return Math.max(...xs) > 0 && Math.min(...xs) < width && Math.max(...ys) > 0 && Math.min(...ys) < height;
}

/**
 * The motion in each cell without the camera's.
 * @param {Motion | null} motion
 * @param {{width: number, height: number}} image
 * @returns {Flow | null} In pixels of the image.
 */
function flowOf(motion, image) {
  if (!motion?.grid || !image.width) return null;
  const { columns, rows, scale, data } = motion.grid;
  const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
  const vectors = Float32Array.from(new Int8Array(bytes.buffer), (unit) => unit * scale);
  const camera = similarity(motion.camera, image.width);
  for (let cell = 0; cell < columns * rows; cell += 1) {
    const [dx, dy] = vectors.subarray(2 * cell, 2 * cell + 2);
    if (!dx && !dy) continue; // a cell without texture has no motion at all, not even the camera's
    const from = {
      x: ((cell % columns) + 0.5) / columns - 0.5,
      y: (((Math.floor(cell / columns) + 0.5) / rows - 0.5) * image.height) / image.width,
    };
    const to = applied(camera, from);
    vectors[2 * cell] = dx - (to.x - from.x) * image.width;
    vectors[2 * cell + 1] = dy - (to.y - from.y) * image.width;
  }
  return { columns, rows, vectors };
}

/**
 * @param {Flow} flow
 * @param {number} across
 * @param {number} down
 * @returns {Flow}
 */
function scaled({ columns, rows, vectors }, across, down) {
  return { columns, rows, vectors: vectors.map((value, i) => value * (i % 2 ? down : across)) };
}

/**
 * Whether an item is opaque enough to draw.
 * @param {{alpha: number}} item
 */
function visible({ alpha }) {
  return alpha > 0.01;
}

/** @param {number} value */
function clamp(value) {
  return Math.min(1, Math.max(0, value));
}

// --- interpolation ---

const BASE_MS = 300; // velocities are measured over this time, because between neighbouring results noise prevails
const AHEAD_MS = 300; // prediction ends after this time, because later guesses are worse than standing still
const BLEND_MS = 90; // time constant with which a correction fades in, so that nothing jumps
const JUMP = 0.2; // share of the image: a larger correction is shown at once, because it is another object

/**
 * Interpolates a point of any number of dimensions between observations. Values are shares of the image, times are
 * milliseconds. The shown value is the last observed one, moved on by its velocity since its capture, plus the rest of the
 * last correction.
 */
class Interpolation {
  /** @type {{at: number, values: Float64Array}[]} */
  #seen = [];
  #velocity;
  #offset;
  #correctedAt = 0;

  /**
   * @param {ArrayLike<number>} values
   * @param {number} capturedAt
   */
  constructor(values, capturedAt) {
    this.#seen.push({ at: capturedAt, values: Float64Array.from(values) });
    this.#velocity = new Float64Array(values.length);
    this.#offset = new Float64Array(values.length);
  }

  /** Capture time of the last frame that showed it. */
  get seenAt() {
    return this.#seen[this.#seen.length - 1].at;
  }

  /**
   * Takes an observation; ignores one that is not newer than the last.
   * @param {ArrayLike<number>} values
   * @param {number} capturedAt Capture time of the frame that shows them.
   * @param {number} now
   */
  observe(values, capturedAt, now) {
    const shown = this.at(now);
    const seen = this.#seen;
    if (capturedAt <= seen[seen.length - 1].at) return;
    seen.push({ at: capturedAt, values: Float64Array.from(values) });
    while (seen.length > 2 && capturedAt - seen[1].at >= BASE_MS / 2 && capturedAt - seen[0].at > BASE_MS) seen.shift();
    const first = seen[0];
    for (let i = 0; i < values.length; i += 1) {
      const jumped = Math.abs(values[i] - shown[i]) > JUMP;
      this.#velocity[i] = jumped ? 0 : (values[i] - first.values[i]) / (capturedAt - first.at);
      this.#offset[i] = 0;
    }
    this.#correctedAt = now;
    const predicted = this.at(now);
    for (let i = 0; i < values.length; i += 1) {
      const offset = shown[i] - predicted[i];
      this.#offset[i] = Math.abs(offset) > JUMP ? 0 : offset;
    }
  }

  /**
   * The value to show at a time.
   * @param {number} now
   * @returns {Float64Array}
   */
  at(now) {
    const { at, values } = this.#seen[this.#seen.length - 1];
    const ahead = aheadOf(at, now);
    const left = remaining(this.#correctedAt, now);
    return values.map((value, i) => value + this.#velocity[i] * ahead + this.#offset[i] * left);
  }
}

/**
 * The time over which the motion is extrapolated, milliseconds.
 * @param {number} capturedAt
 * @param {number} now
 */
function aheadOf(capturedAt, now) {
  return Math.min(AHEAD_MS, Math.max(0, now - capturedAt));
}

/**
 * The share of a correction that has not faded in yet.
 * @param {number} correctedAt
 * @param {number} now
 */
function remaining(correctedAt, now) {
  return Math.exp(-Math.max(0, now - correctedAt) / BLEND_MS);
}

// --- the camera's motion ---

const REMEMBERED_MS = 60_000; // length of the path; the position of a text that was read earlier is unknown
const STILL = { turn: { x: 1, y: 0 }, shift: { x: 0, y: 0 } };

/**
 * The camera's motion as a similarity.
 * @param {CameraMotion} camera In pixels of a frame.
 * @param {number} width Of that frame, pixels.
 * @returns {Similarity}
 */
function similarity({ dx, dy, rotation_deg = 0, zoom = 1 }, width) {
  const angle = ((rotation_deg ?? 0) * Math.PI) / 180;
  const scale = zoom ?? 1;
  return {
    turn: { x: scale * Math.cos(angle), y: scale * Math.sin(angle) },
    shift: { x: dx / width, y: dy / width },
  };
}

/**
 * Where a motion takes a point.
 * @param {Similarity} motion
 * @param {Point} from Relative to the centre of the image, in widths of the image.
 * @returns {Point}
 */
function applied({ turn, shift }, from) {
  const { x, y } = times(turn, from);
  return { x: x + shift.x, y: y + shift.y };
}

/**
 * The path of the camera over the latest results. The camera's motion from one frame to the next is a similarity: a shift,
 * a rotation and a zoom about the centre of the image. As complex numbers, with the width of the image as the unit, a point
 * `p` (relative to the centre) goes to `turn * p + shift`. Services that measure shifts alone send no `rotation_deg` and no
 * `zoom`.
 */
class CameraPath {
  /**
   * `at`: capture time; `since`: that of the frame before; `answeredAt`: when the result came.
   * @type {{at: number, since: number, answeredAt: number, step: Similarity | null}[]}
   */
  #steps = [];

  /**
   * Takes the step of a result; ignores one that is not newer than the last.
   * @param {Similarity | null} step The motion from the last result's frame to this one's; null where it is unknown.
   * @param {number} capturedAt
   * @param {number} now
   */
  observe(step, capturedAt, now) {
    const last = this.#steps.at(-1)?.at ?? capturedAt;
    if (this.#steps.length && capturedAt <= last) return;
    this.#steps.push({ at: capturedAt, since: last, answeredAt: now, step });
    while (capturedAt - this.#steps[0].at > REMEMBERED_MS) this.#steps.shift();
  }

  /**
   * The motion from an earlier frame to the latest result's. The service measures the age from answer to answer, so that the
   * frame is the one whose answer came about that long ago.
   * @param {number} ageMs
   * @returns {{motion: Similarity, capturedAt: number}} `capturedAt` is the capture time of the earlier frame.
   */
  since(ageMs) {
    const last = this.#steps.at(-1);
    if (!last) return { motion: STILL, capturedAt: 0 };
    let from = this.#steps.length - 1;
    const off = (/** @type {number} */ index) => Math.abs(last.answeredAt - ageMs - this.#steps[index].answeredAt);
    while (from > 0 && off(from - 1) < off(from)) from -= 1;
    const motion = this.#steps.slice(from + 1).reduce((sum, { step }) => (step ? after(sum, step) : sum), STILL);
    return { motion, capturedAt: this.#steps[from].at };
  }

  /**
   * The predicted motion of the camera since the latest result.
   * @param {number} now
   * @returns {Similarity}
   */
  ahead(now) {
    const last = this.#steps.at(-1);
    if (!last?.step) return STILL;
    const recent = this.#steps.filter(({ since, step }) => step && last.at - since <= BASE_MS);
    if (!recent.length) recent.push(last);
    const took = recent.reduce((sum, { at, since }) => sum + at - since, 0);
    if (took <= 0) return STILL;
    const motion = recent.reduce((sum, { step }) => (step ? after(sum, step) : sum), STILL);
    return partOf(motion, aheadOf(last.at, now) / took);
  }

  clear() {
    this.#steps = [];
  }
}

/**
 * @param {Similarity} first
 * @param {Similarity} second
 * @returns {Similarity} The first motion followed by the second.
 */
function after(first, second) {
  return { turn: times(second.turn, first.turn), shift: applied(second, first.shift) };
}

/**
 * A share of a motion; more than 1 extends it.
 * @param {Similarity} motion
 * @param {number} part
 * @returns {Similarity}
 */
function partOf({ turn, shift }, part) {
  const [scale, angle] = [Math.hypot(turn.x, turn.y) ** part, Math.atan2(turn.y, turn.x) * part];
  return {
    turn: { x: scale * Math.cos(angle), y: scale * Math.sin(angle) },
    shift: { x: shift.x * part, y: shift.y * part },
  };
}

/**
 * @param {Point} a
 * @param {Point} b
 * @returns {Point} The product of two complex numbers.
 */
function times(a, b) {
  return { x: a.x * b.x - a.y * b.y, y: a.x * b.y + a.y * b.x };
}

// --- fading ---

const FRESH_MS = 300; // up to this age a detection has its full colour …
const FADED_MS = 1000; // … from this age on it is a faint hint, because the image has changed meanwhile …
const TEXT_FADED_MS = 4000; // … a text fades later, because it is read rarely and follows the camera
const LEAST = 0.35; // opacity of a hint, which is still recognisable

/**
 * The opacity of a detection by its age.
 * @param {number} ageMs Age of the frame that shows it.
 * @returns {number} From 1 down to `LEAST`. A lost track fades out separately.
 */
function freshness(ageMs) {
  return fade(ageMs, FADED_MS);
}

/**
 * The opacity of a text.
 * @param {number} ageMs Age of the frame with the camera's latest known position.
 * @param {number} readMs Age of the frame in which the text was read.
 */
function textFreshness(ageMs, readMs) {
  return Math.min(freshness(ageMs), fade(readMs, TEXT_FADED_MS));
}

/**
 * @param {number} ageMs
 * @param {number} fadedMs Age of the lowest opacity.
 */
function fade(ageMs, fadedMs) {
  const faded = Math.min(1, Math.max(0, (ageMs - FRESH_MS) / (fadedMs - FRESH_MS)));
  return 1 - (1 - LEAST) * faded;
}

// --- change of source ---

/** Keeps results of what the page showed before a change of source, a seek or a rotation from being drawn after it. */
export class SourceChange {
  #lastSeq = 0;
  #at = -Infinity;
  /** Whether the next result's motion is measured from the old image to the new one. */
  #first = false;

  /**
   * From now on the page shows something else.
   * @param {number} lastSeq `seq` of the last frame sent so far.
   * @param {number} now
   */
  mark(lastSeq, now) {
    this.#lastSeq = lastSeq;
    this.#at = now;
    this.#first = true;
  }

  /**
   * The parts of a result that belong to what the page shows now.
   * @param {Result} result
   * @param {number} capturedAt Capture time of its frame, on the clock of `mark`.
   * @returns {Result | null} Null when no part does.
   */
  filter(result, capturedAt) {
    if (result.seq <= this.#lastSeq) return null;
    const readAt = capturedAt - (result.stages.ocr?.age_ms ?? 0);
    const texts = readAt < this.#at ? [] : result.texts;
    const motion = this.#first ? null : result.motion;
    this.#first = false;
    return { ...result, texts, motion };
  }
}
