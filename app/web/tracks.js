// What is in view between two results: boxes and skeletons move with their tracks, texts with the camera; all of it
// fades as it gets older, and when it is not seen any more. Pure: the caller brings the time (`performance.now()`'s),
// results come in, a scene for any time goes out.

import { freshness, textFreshness } from "./fading.js";
import { Glide, unblended } from "./glide.js";
import { Steadying, moved, similarity } from "./steadying.js";

/** @import { Box, Detection, Motion, Pose, Result } from "./protocol.js" */
/** @import { Point, Similarity } from "./steadying.js" */

/**
 * @typedef {object} SceneObject
 * @property {number} class_id
 * @property {string} class_name
 * @property {number} confidence
 * @property {number | null} track_id
 * @property {Box} box Pixels of the scene.
 * @property {number} alpha 0 to 1.
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
/** @typedef {{columns: number, rows: number, vectors: Float32Array}} Field dx, dy pairs, row by row, pixels. */
/**
 * @typedef {object} Scene What is drawn at one moment, in pixels of the picture that is shown.
 * @property {number} width
 * @property {number} height
 * @property {SceneObject[]} objects
 * @property {ScenePose[]} poses
 * @property {SceneText[]} texts
 * @property {{score: number, direction_deg: number | null, moving_fraction: number} | null} motion
 * @property {Field | null} field What moves besides the camera.
 * @property {number} fieldAlpha
 */
/**
 * A text where it was at the latest result. Places are in widths of the picture, from its middle.
 * @typedef {object} Sign
 * @property {string} text
 * @property {number} confidence
 * @property {Point[]} corners
 * @property {Point} offset What is left of its last correction …
 * @property {number} correctedAt … and since when.
 */
/**
 * @typedef {object} Track
 * @property {string} kind
 * @property {number | null} id
 * @property {Glide} glide x1, y1, x2, y2, then x, y of each keypoint.
 * @property {Detection | Pose} last
 * @property {number} bornAt
 * @property {number | null} lostAt
 */

const FADE_IN_MS = 80;
const FADE_OUT_MS = 250;
const HOLD_MS = 400; // with no result at all: at least so long does the last one count as the present
const HOLD_RESULTS = 2; // … or as long as so many results take
const TEXT_STALE_MS = 1500;
const SAME_THING = 0.3; // IoU
const SAME_SIGN = 0.2; // widths of the picture: farther away it is another sign with the same words

export class Tracks {
  /** @type {Track[]} */
  #objects = [];
  /** @type {Track[]} */
  #poses = [];
  /** @type {Sign[]} */
  #signs = [];
  /** When the frame was taken in which they were read. */
  #readAt = 0;
  #camera = new Steadying();
  /** @type {Result | null} */
  #result = null;
  /** When its frame was taken. */
  #capturedAt = 0;
  /** @type {Field | null} */
  #field = null;
  /**
   * The same in pixels of the picture: one object as long as nothing changes.
   * @type {{field: Field, across: number, down: number} | null}
   */
  #shown = null;
  #observedAt = 0;
  #intervalMs = HOLD_MS;

  /**
   * @param {Result} result
   * @param {number} capturedAt When its frame was taken.
   * @param {number} now
   */
  observe(result, capturedAt, now) {
    if (this.#observedAt) this.#intervalMs += 0.3 * (now - this.#observedAt - this.#intervalMs);
    const { image, objects, poses, motion } = result;
    this.#observedAt = now;
    const before = this.#signsAt(now);
    this.#camera.observe(motion && image.width ? similarity(motion.camera, image.width) : null, capturedAt, now);
    const readMs = result.stages.ocr?.age_ms ?? 0;
    const { way, takenAt } = this.#camera.since(readMs);
    this.#readAt = Math.min(takenAt, capturedAt - readMs);
    this.#signs = result.texts.map((text) => signOf(text, image, way));
    for (const sign of this.#signs) blend(sign, before, now);
    this.#result = result;
    this.#capturedAt = capturedAt;
    this.#field = field(motion, image);
    this.#shown = null;
    this.#objects = follow(this.#objects, objects, (one) => `object ${one.class_id}`, image, capturedAt, now);
    this.#poses = follow(this.#poses, poses, () => "pose", image, capturedAt, now);
  }

  clear() {
    this.#objects = [];
    this.#poses = [];
    this.#signs = [];
    this.#camera.clear();
    this.#result = this.#field = this.#shown = null;
    this.#observedAt = 0;
  }

  /**
   * The scene as it is to be drawn.
   * @param {number} now
   * @param {{width: number, height: number}} size Of the picture that is shown.
   * @returns {Scene}
   */
  at(now, { width, height }) {
    const result = this.#result;
    const silence = now - this.#observedAt - Math.max(HOLD_MS, HOLD_RESULTS * this.#intervalMs);
    const present = result ? 1 - clamp(silence / FADE_OUT_MS) : 0;
    const shown = (/** @type {Track} */ track) => {
      return present * visibility(track, now) * freshness(now - track.glide.seenAt);
    };
    const stale = (result?.stages.ocr?.status === "stale" && (result.stages.ocr.age_ms ?? 0) > TEXT_STALE_MS) || false;
    const across = width / (result?.image.width ?? 1);
    const down = height / (result?.image.height ?? 1);
    return {
      width,
      height,
      objects: this.#objects.map((track) => sceneObject(track, now, width, height, shown(track))).filter(visible),
      poses: this.#poses.map((track) => scenePose(track, now, width, height, shown(track))).filter(visible),
      texts: this.#texts(now, width, height, present).map((text) => ({ ...text, stale })).filter(visible),
      motion: present > 0 ? (result?.motion ?? null) : null,
      field: present > 0 ? this.#scaled(across, down) : null,
      fieldAlpha: present * freshness(now - this.#capturedAt),
    };
  }

  /**
   * Where the signs are by now, as far as the camera is known to have moved.
   * @param {number} now
   * @returns {Sign[]}
   */
  #signsAt(now) {
    if (!this.#signs.length) return [];
    const way = this.#camera.ahead(now);
    return this.#signs.map((sign) => {
      const left = unblended(sign.correctedAt, now);
      const corners = sign.corners.map((corner) => {
        const { x, y } = moved(way, corner);
        return { x: x + sign.offset.x * left, y: y + sign.offset.y * left };
      });
      return { ...sign, corners };
    });
  }

  /**
   * Those in the picture.
   * @param {number} now
   * @param {number} width
   * @param {number} height
   * @param {number} present
   */
  #texts(now, width, height, present) {
    const alpha = present * textFreshness(now - this.#capturedAt, now - this.#readAt);
    return this.#signsAt(now)
      .map(({ text, confidence, corners }) => {
        const polygon = corners.map(({ x, y }) => {
          return /** @type {[number, number]} */ ([(x + 0.5) * width, y * width + height / 2]);
        });
        return { text, confidence, polygon, alpha };
      })
      .filter(({ polygon }) => reaches(polygon, width, height));
  }

  /**
   * @param {number} across
   * @param {number} down
   */
  #scaled(across, down) {
    if (!this.#field) return null;
    if (this.#shown?.across !== across || this.#shown.down !== down) {
      this.#shown = { field: scaled(this.#field, across, down), across, down };
    }
    return this.#shown.field;
  }
}

/**
 * The tracks after a result: known things are moved, new ones begin, missing ones start to fade.
 * @template {Detection | Pose} T
 * @param {Track[]} tracks
 * @param {T[]} found
 * @param {(one: T) => string} kindOf
 * @param {{width: number, height: number}} image
 * @param {number} capturedAt
 * @param {number} now
 * @returns {Track[]}
 */
function follow(tracks, found, kindOf, image, capturedAt, now) {
  const left = new Set(tracks);
  const kept = found.map((one) => {
    const values = vector(one, image);
    const kind = kindOf(one);
    const track = match(left, kind, one.track_id, values, now);
    if (!track) {
      return { kind, id: one.track_id, glide: new Glide(values, capturedAt), last: one, bornAt: now, lostAt: null };
    }
    left.delete(track);
    track.glide.observe(values, capturedAt, now);
    return Object.assign(track, { id: one.track_id ?? track.id, last: one, lostAt: null });
  });
  const fading = [...left].filter((track) => track.lostAt === null || now - track.lostAt < FADE_OUT_MS);
  for (const track of fading) track.lostAt ??= now;
  return [...kept, ...fading];
}

/**
 * The track of the same number; for a thing without one, or a number never seen, the track that lies where it is.
 * @param {Set<Track>} tracks
 * @param {string} kind
 * @param {number | null} id
 * @param {number[]} values
 * @param {number} now
 */
function match(tracks, kind, id, values, now) {
  let best = null;
  let most = SAME_THING;
  for (const track of tracks) {
    if (track.kind !== kind) continue;
    if (id !== null && track.id === id) return track;
    if (id !== null && track.id !== null) continue;
    const overlap = iou(track.glide.at(now), values);
    if (overlap > most) [best, most] = [track, overlap];
  }
  return best;
}

/**
 * @param {Detection | Pose} one
 * @param {{width: number, height: number}} image
 */
function vector({ box, ...one }, { width, height }) {
  const values = [box.x1 / width, box.y1 / height, box.x2 / width, box.y2 / height];
  if ("keypoints" in one) for (const point of one.keypoints) values.push(point.x / width, point.y / height);
  return values;
}

/**
 * @param {ArrayLike<number>} a
 * @param {ArrayLike<number>} b
 */
export function iou(a, b) {
  const across = Math.min(a[2], b[2]) - Math.max(a[0], b[0]);
  const down = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
  if (across <= 0 || down <= 0) return 0;
  const shared = across * down;
  return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared);
}

/**
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
  return { class_id, class_name, confidence, track_id: track.id, box: box(track.glide.at(now), width, height), alpha };
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
  const values = track.glide.at(now);
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
 * @param {{width: number, height: number}} image Of the frame that it is told with.
 * @param {Similarity} way The camera's, since it was read.
 * @returns {Sign}
 */
function signOf({ text, confidence, polygon }, { width, height }, way) {
  const corners = polygon.map(([x, y]) => moved(way, { x: x / width - 0.5, y: (y - height / 2) / width }));
  return { text, confidence, corners, offset: { x: 0, y: 0 }, correctedAt: 0 };
}

/**
 * Has a sign that is shown already go over to its new place, so that nothing jumps.
 * @param {Sign} sign
 * @param {Sign[]} before Each is taken once.
 * @param {number} now
 */
function blend(sign, before, now) {
  const to = middle(sign.corners);
  const off = (/** @type {Sign} */ other) => {
    const from = middle(other.corners);
    return { x: from.x - to.x, y: from.y - to.y };
  };
  const far = (/** @type {Sign} */ other) => Math.hypot(off(other).x, off(other).y);
  const same = before.filter((other) => other.text === sign.text && far(other) < SAME_SIGN);
  if (!same.length) return;
  const nearest = same.reduce((best, other) => (far(other) < far(best) ? other : best));
  before.splice(before.indexOf(nearest), 1);
  Object.assign(sign, { offset: off(nearest), correctedAt: now });
}

/** @param {Point[]} corners */
function middle(corners) {
  const sum = corners.reduce((all, { x, y }) => ({ x: all.x + x, y: all.y + y }), { x: 0, y: 0 });
  return { x: sum.x / corners.length, y: sum.y / corners.length };
}

/**
 * Whether any of it is in the picture.
 * @param {[number, number][]} polygon
 * @param {number} width
 * @param {number} height
 */
function reaches(polygon, width, height) {
  const [xs, ys] = [polygon.map(([x]) => x), polygon.map(([, y]) => y)];
  return Math.max(...xs) > 0 && Math.min(...xs) < width && Math.max(...ys) > 0 && Math.min(...ys) < height;
}

/**
 * What moves besides the camera, in each cell.
 * @param {Motion | null} motion
 * @param {{width: number, height: number}} image
 * @returns {Field | null} In pixels of the image.
 */
function field(motion, image) {
  if (!motion?.grid || !image.width) return null;
  const { columns, rows, scale, data } = motion.grid;
  const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
  const vectors = Float32Array.from(new Int8Array(bytes.buffer), (unit) => unit * scale);
  const camera = similarity(motion.camera, image.width);
  for (let cell = 0; cell < columns * rows; cell += 1) {
    const [dx, dy] = vectors.subarray(2 * cell, 2 * cell + 2);
    if (!dx && !dy) continue; // where there is nothing to be seen moving, the service says no motion: not the camera's
    const from = {
      x: ((cell % columns) + 0.5) / columns - 0.5,
      y: (((Math.floor(cell / columns) + 0.5) / rows - 0.5) * image.height) / image.width,
    };
    const to = moved(camera, from);
    vectors[2 * cell] = dx - (to.x - from.x) * image.width;
    vectors[2 * cell + 1] = dy - (to.y - from.y) * image.width;
  }
  return { columns, rows, vectors };
}

/**
 * @param {Field} field
 * @param {number} across
 * @param {number} down
 * @returns {Field}
 */
function scaled({ columns, rows, vectors }, across, down) {
  return { columns, rows, vectors: vectors.map((value, i) => value * (i % 2 ? down : across)) };
}

/** @param {{alpha: number}} one */
function visible({ alpha }) {
  return alpha > 0.01;
}

/** @param {number} value */
function clamp(value) {
  return Math.min(1, Math.max(0, value));
}
