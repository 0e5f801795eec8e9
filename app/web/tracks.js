// What the overlay shows at any moment: entries that move with their tracks or with the camera, between two results. No DOM.

import { anchorOf, anchorShape, around, coordinates, entriesOf, geometryOf, lookOf, ownBox, placed, sizesOf, without } from "./stages.js";
import { valueAt } from "./templates.js";

/** @import { Box, CameraMove, Result } from "./protocol.js" */
/** @import { Look, ShownShape, ShownStage } from "./stages.js" */

/** @typedef {{x: number, y: number}} Point */
/** @typedef {{turn: Point, shift: Point}} Similarity */
/** @typedef {{columns: number, rows: number, vectors: Float32Array}} Flow Pairs of dx and dy in pixels, row by row. An arrow is one pair. */
/**
 * @typedef {object} SceneEntry
 * @property {any} entry As in the result, but for its positions.
 * @property {Box | null} box Where its label goes; null: it has no place in the image.
 * @property {any[]} geometry Of each shape of its stage, as on the wire, but in pixels of the scene; null: not drawn. The geometry
 *   of a `field` is a `Flow`.
 * @property {Look} look
 * @property {number} alpha Opacity, 0 to 1.
 */
/**
 * @typedef {object} SceneLayer What one stage shows.
 * @property {ShownStage} stage
 * @property {SceneEntry[]} entries
 * @property {boolean} stale Whether the entries are of a frame so long ago that they may be wrong by now.
 * @property {boolean} ordered Whether the order of the entries is that of their labels; else the largest come first.
 */

/** What the overlay draws at one moment, in pixels of the shown image. */
export class Scene {
  /**
   * @param {number} width
   * @param {number} height
   * @param {SceneLayer[]} layers
   */
  constructor(width, height, layers) {
    this.width = width;
    this.height = height;
    this.layers = layers;
  }

  /** Whether there is nothing to draw. */
  get blank() {
    return this.layers.every(({ stage, entries }) => {
      return entries.every(({ geometry }) => !stage.shapes.some(({ label }, i) => label || geometry[i]));
    });
  }

  /**
   * The entries by the field of the result that they come from, each as on the wire with its positions in the scene, with
   * `alpha` and `stale`.
   * @returns {Record<string, any[]>}
   */
  get parts() {
    return Object.fromEntries(
      this.layers.map(({ stage: { field, shapes }, entries, stale }) => [
        field,
        entries.map(({ entry, box, geometry, alpha }) => {
          let shown = "box" in entry && box ? { ...entry, box } : { ...entry };
          shapes.forEach(({ path, kind }, i) => {
            if (kind !== "label" && (geometry[i] || kind === "field")) shown = withValue(shown, path, geometry[i]);
          });
          return { ...shown, alpha, stale };
        }),
      ]),
    );
  }
}

/**
 * A copy with another value at a path.
 * @param {any} from
 * @param {string[]} path
 * @param {any} value
 * @returns {any}
 */
function withValue(from, [key, ...path], value) {
  return key === undefined ? value : { ...from, [key]: withValue(from?.[key], path, value) };
}

/**
 * An entry of a stage whose results are late, and its position at the latest result. Positions are relative to the centre
 * of the image, in widths of the image.
 * @typedef {object} Late
 * @property {any} entry
 * @property {string} name By which the same is known again.
 * @property {Look} look
 * @property {(Point[] | null)[]} points Of each shape's geometry.
 * @property {Point[] | null} box The corners of the box that the entry itself has.
 * @property {Point} offset The last correction of its position, which fades out …
 * @property {number} correctedAt … from this time on.
 */
/**
 * @typedef {object} Track
 * @property {unknown} kind Only what is of the same kind can be the same thing.
 * @property {number | null} id
 * @property {Interpolation | null} position x1, y1, x2, y2 of its box, as shares of the image. Null: it has no place.
 * @property {number[]} from The box of `last`, as shares of the image.
 * @property {(Outline | null)[]} outlines Of each shape; null: it is not drawn, or it is the box.
 * @property {ShownShape | undefined} boxed The shape that is the box.
 * @property {any} last The entry.
 * @property {Look} look
 * @property {number} seenAt Capture time of the last frame that showed it.
 * @property {number} bornAt
 * @property {number | null} lostAt
 */
/**
 * @typedef {object} Outline
 * @property {any} geometry As in `last`.
 * @property {number[]} seen Its coordinates, as shares of the image.
 * @property {string} sizes
 * @property {Interpolation | null} points Null: they belong to no such points of the last result, and move with the box.
 * @property {boolean} known Whether the points' own motion is known: a new track's, or that of as many points as before.
 */
/**
 * @typedef {object} Layer What one stage has found.
 * @property {ShownStage} stage
 * @property {boolean} late
 * @property {Track[]} tracks
 * @property {Late[]} entries Those of a late stage.
 * @property {number} readAt Capture time of the frame that shows them.
 * @property {any} value The part of the latest result.
 * @property {Map<ShownShape, {flow: Flow, shown: {flow: Flow, across: number, down: number} | null}>} flows `shown`: in
 *   pixels of the image. The object stays the same while nothing changes, so that its drawing can be cached.
 */

const FADE_IN_MS = 80;
const FADE_OUT_MS = 250;
const HOLD_MS = 400; // without further results the last one counts as current for at least this long …
const HOLD_RESULTS = 2; // … or for the time that this many results take
const STALE_MS = 1500;
const SAME_OBJECT = 0.3; // IoU
const SAME_TEXT = 0.2; // widths of the image: an equal text farther away is another one
const UNMOVED = new Set(["field", "arrow", "label"]); // kinds of shapes without points that a track moves
const MATCHED = new Set(["points", "polygon", "polyline"]); // kinds whose points are the same ones in every result
const FEW_CORNERS = 8; // of a polygon: whichever of them comes first, it is the same polygon

/**
 * Computes the scene between two results. What the stages found in the result's frame moves with its tracks, what they found
 * in an earlier one with the camera, and everything fades as it ages or when it is no longer found. It has no clock: the
 * caller passes times of `performance.now()`.
 */
export class Tracks {
  /** @type {ShownStage[]} */
  #stages = [];
  /** @type {Layer[]} */
  #layers = [];
  #camera = new CameraPath();
  /** @type {Result | null} */
  #result = null;
  /** Capture time of the result's frame. */
  #capturedAt = 0;
  #observedAt = 0;
  #intervalMs = HOLD_MS;

  /** The stages whose results follow. Others forget everything. */
  get stages() {
    return this.#stages;
  }

  set stages(stages) {
    if (stages === this.#stages) return;
    this.#stages = stages;
    this.#layers = stages.filter(({ field }) => field !== null).map(emptyLayer);
    this.clear();
  }

  /**
   * Updates the tracks and the late entries from a result.
   * @param {Result} result
   * @param {number} capturedAt Capture time of its frame.
   * @param {number} now
   */
  observe(result, capturedAt, now) {
    if (this.#observedAt) this.#intervalMs += 0.3 * (now - this.#observedAt - this.#intervalMs);
    const { image } = result;
    this.#observedAt = now;
    const before = this.#layers.map(({ entries }) => this.#moved(entries, now));
    const camera = cameraOf(this.#stages, result);
    this.#camera.observe(camera && image.width ? similarity(camera, image.width) : null, capturedAt, now);
    this.#layers.forEach((layer, index) => {
      const { stage } = layer;
      layer.value = result[stage.field ?? ""];
      layer.flows = flowsOf(stage, layer.value, image);
      const ageMs = result.stages[stage.name]?.age_ms ?? 0;
      layer.late ||= ageMs > 0;
      if (layer.late) this.#read(layer, before[index], ageMs, capturedAt, now, image);
      else if (!stays(stage)) layer.tracks = follow(stage, layer.tracks, entriesOf(layer.value), image, capturedAt, now);
    });
    this.#result = result;
    this.#capturedAt = capturedAt;
  }

  /** Forgets everything that was found. */
  clear() {
    this.#layers = this.#layers.map(({ stage }) => emptyLayer(stage));
    this.#camera.clear();
    this.#result = null;
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
    const across = width / (result?.image.width ?? 1);
    const down = height / (result?.image.height ?? 1);
    const layers = this.#layers.map((layer) => {
      const { stage, late } = layer;
      const status = result?.stages[stage.name];
      const stale = status?.status === "stale" && (status.age_ms ?? 0) > STALE_MS;
      const flows = stage.shapes.map((shape) => scaledFlow(layer, shape, across, down));
      return { stage, stale, ordered: late, entries: this.#entries(layer, flows, now, width, height, present).filter(visible) };
    });
    return new Scene(width, height, layers);
  }

  /**
   * @param {Layer} layer
   * @param {any[]} fixed The geometry of those shapes that do not move.
   * @param {number} now
   * @param {number} width
   * @param {number} height
   * @param {number} present
   * @returns {SceneEntry[]}
   */
  #entries(layer, fixed, now, width, height, present) {
    const { stage, late, readAt } = layer;
    if (late) {
      const alpha = present * lateFreshness(now - this.#capturedAt, now - readAt);
      return this.#moved(layer.entries, now).flatMap((entry) => lateEntry(stage, entry, width, height, alpha) ?? []);
    }
    if (stays(stage)) {
      const alpha = present * freshness(now - this.#capturedAt);
      return entriesOf(layer.value).map((entry) => ({ entry, box: null, geometry: fixed, look: lookOf(stage, entry), alpha }));
    }
    return layer.tracks.map((track) => {
      return sceneEntry(stage, track, fixed, now, width, height, present * visibility(track, now) * freshness(now - track.seenAt));
    });
  }

  /**
   * Takes the entries of a late stage to where they are now, although they were found in an earlier frame.
   * @param {Layer} layer
   * @param {Late[]} before Those that are shown.
   * @param {number} ageMs
   * @param {number} capturedAt
   * @param {number} now
   * @param {{width: number, height: number}} image
   */
  #read(layer, before, ageMs, capturedAt, now, image) {
    const { move, capturedAt: takenAt } = this.#camera.since(ageMs);
    layer.readAt = Math.min(takenAt, capturedAt - ageMs);
    layer.tracks = [];
    layer.entries = entriesOf(layer.value).map((entry) => lateOf(layer.stage, entry, image, move));
    for (const entry of layer.entries) keepPosition(entry, before, now);
  }

  /**
   * Late entries at their positions at a time, moved on by the camera's predicted motion.
   * @param {Late[]} entries
   * @param {number} now
   * @returns {Late[]}
   */
  #moved(entries, now) {
    if (!entries.length) return [];
    const move = this.#camera.ahead(now);
    return entries.map((entry) => {
      const left = remaining(entry.correctedAt, now);
      const moved = (/** @type {Point[] | null} */ points) => {
        if (!points) return null;
        return points.map((point) => {
          const { x, y } = applied(move, point);
          return { x: x + entry.offset.x * left, y: y + entry.offset.y * left };
        });
      };
      return { ...entry, points: entry.points.map(moved), box: moved(entry.box) };
    });
  }
}

/**
 * @param {ShownStage} stage
 * @returns {Layer}
 */
function emptyLayer(stage) {
  return { stage, late: stage.late, tracks: [], entries: [], readAt: 0, value: null, flows: new Map() };
}

/**
 * Whether what a stage shows belongs to the whole image, and so to no track.
 * @param {ShownStage} stage
 */
function stays({ shapes }) {
  return shapes.every(({ kind }) => kind === "field" || kind === "arrow");
}

/**
 * The camera's motion from the last frame, as the first stage measures it that does.
 * @param {ShownStage[]} stages
 * @param {Result} result
 * @returns {CameraMove | null}
 */
function cameraOf(stages, result) {
  for (const { field, shapes } of stages) {
    for (const { camera } of shapes) {
      const found = field && camera && valueAt(entriesOf(result[field])[0], camera);
      if (found) return found;
    }
  }
  return null;
}

// --- tracks ---

/**
 * Updates the tracks from a result: moves those found again, begins new ones, lets missing ones fade.
 * @param {ShownStage} stage
 * @param {Track[]} tracks
 * @param {any[]} found
 * @param {{width: number, height: number}} image
 * @param {number} capturedAt
 * @param {number} now
 * @returns {Track[]}
 */
function follow(stage, tracks, found, image, capturedAt, now) {
  const left = new Set(tracks);
  const kept = found.map((entry) => {
    const box = anchorOf(stage, entry);
    const values = box ? shares([box.x1, box.y1, box.x2, box.y2], image) : [];
    const kind = entry?.class_id;
    const id = entry?.track_id ?? null;
    let track = match(left, kind, id, values, now);
    if (!track) {
      const position = box && new Interpolation(values, capturedAt);
      const look = { marks: [] };
      const shown = { from: values, outlines: [], boxed: undefined, last: entry, look };
      track = { kind, id, position, ...shown, seenAt: capturedAt, bornAt: now, lostAt: null };
    } else {
      left.delete(track);
      track.position?.observe(values, capturedAt, now);
    }
    const seen = { id: id ?? track.id, last: entry, from: values, seenAt: Math.max(track.seenAt, capturedAt), lostAt: null };
    Object.assign(track, seen, { look: lookOf(stage, track.id === null ? entry : { ...entry, track_id: seen.id }) });
    observeOutlines(stage, track, image, capturedAt, now);
    return track;
  });
  const fading = [...left].filter((track) => track.lostAt === null || now - track.lostAt < FADE_OUT_MS);
  for (const track of fading) track.lostAt ??= now;
  return [...kept, ...fading];
}

/**
 * The track with the same id. For an entry without an id, or with a new one, the track that overlaps it most.
 * @param {Set<Track>} tracks
 * @param {unknown} kind
 * @param {number | null} id
 * @param {number[]} values
 * @param {number} now
 */
function match(tracks, kind, id, values, now) {
  let best = null;
  let most = SAME_OBJECT;
  for (const track of tracks) {
    if (track.kind !== kind || Boolean(track.position) !== values.length > 0) continue;
    if (id !== null && track.id === id) return track;
    if (id !== null && track.id !== null) continue;
    if (!track.position) return track;
    const overlap = iou(track.position.at(now), values);
    if (overlap > most) [best, most] = [track, overlap];
  }
  return best;
}

/**
 * Takes the shapes of a track's new entry. Points go over into those before, where there are as many.
 * @param {ShownStage} stage
 * @param {Track} track
 * @param {{width: number, height: number}} image
 * @param {number} capturedAt
 * @param {number} now
 */
function observeOutlines(stage, track, image, capturedAt, now) {
  track.boxed = anchorShape(stage, track.last);
  track.outlines = stage.shapes.map((shape, i) => {
    const geometry = shape === track.boxed || UNMOVED.has(shape.kind) ? null : geometryOf(shape, track.last);
    if (!geometry) return null;
    const seen = shares(coordinates(shape, geometry), image);
    const sizes = sizesOf(shape, geometry);
    if (!MATCHED.has(shape.kind)) return { geometry, seen, sizes, points: null, known: false };
    const before = track.outlines[i];
    if (!before?.points || before.sizes !== sizes) {
      return { geometry, seen, sizes, points: new Interpolation(seen, capturedAt), known: !track.outlines.length };
    }
    const few = shape.kind === "polygon" && seen.length <= 2 * FEW_CORNERS && !sizes.includes(",");
    before.points.observe(few ? startingAlike(seen, before.points.at(now)) : seen, capturedAt, now);
    return { ...before, geometry, seen, known: true };
  });
}

/**
 * A polygon that starts at the corner at which it is nearest to another one.
 * @param {number[]} values
 * @param {ArrayLike<number>} other
 */
function startingAlike(values, other) {
  let [best, least] = [values, Infinity];
  for (let start = 0; start < values.length; start += 2) {
    const turned = start ? [...values.slice(start), ...values.slice(0, start)] : values;
    const off = turned.reduce((sum, value, i) => sum + (value - other[i]) ** 2, 0);
    if (off < least) [best, least] = [turned, off];
  }
  return best;
}

/**
 * @param {number[]} flat Coordinates in pixels.
 * @param {{width: number, height: number}} image
 */
function shares(flat, { width, height }) {
  return flat.map((value, i) => value / (i % 2 ? height : width));
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
 * A track as the scene shows it. Points that move by themselves are where they are expected; everything else moves and grows
 * with the track's box.
 * @param {ShownStage} stage
 * @param {Track} track
 * @param {any[]} fixed The geometry of those shapes that do not move.
 * @param {number} now
 * @param {number} width
 * @param {number} height
 * @param {number} alpha
 * @returns {SceneEntry}
 */
function sceneEntry({ shapes }, track, fixed, now, width, height, alpha) {
  const { last, look, outlines, boxed, from } = track;
  const to = track.position?.at(now);
  const entry = track.id === null || last.track_id === track.id ? last : { ...last, track_id: track.id };
  const box = to ? shownBox(to, width, height) : null;
  const geometry = shapes.map((shape, i) => {
    if (shape === boxed) return box;
    const outline = outlines[i];
    if (!outline || !to) return fixed[i];
    const values = outline.points && outline.known ? outline.points.at(now) : ridden(outline.seen, from, to);
    return placed(shape, outline.geometry, values, width, height);
  });
  return { entry, box, geometry, look, alpha };
}

/**
 * Where points are when their box is elsewhere.
 * @param {number[]} points
 * @param {number[]} from The box when it had these points: x1, y1, x2, y2.
 * @param {ArrayLike<number>} to
 */
function ridden(points, from, to) {
  const [across, down] = [(to[2] - to[0]) / (from[2] - from[0] || 1), (to[3] - to[1]) / (from[3] - from[1] || 1)];
  return points.map((value, i) => (i % 2 ? to[1] + (value - from[1]) * down : to[0] + (value - from[0]) * across));
}

/**
 * @param {ArrayLike<number>} values
 * @param {number} width
 * @param {number} height
 * @returns {Box}
 */
function shownBox({ 0: x1, 1: y1, 2: x2, 3: y2 }, width, height) {
  return { x1: clamp(x1) * width, y1: clamp(y1) * height, x2: clamp(x2) * width, y2: clamp(y2) * height };
}

// --- late entries ---

/**
 * @param {ShownStage} stage
 * @param {any} entry
 * @param {{width: number, height: number}} image Size of the result's frame.
 * @param {Similarity} move The camera's, since the frame that shows the entry.
 * @returns {Late}
 */
function lateOf(stage, entry, { width, height }, move) {
  const moved = (/** @type {number[]} */ flat) => {
    return pairs(flat).map(({ x, y }) => applied(move, { x: x / width - 0.5, y: (y - height / 2) / width }));
  };
  const points = stage.shapes.map((shape) => {
    const geometry = UNMOVED.has(shape.kind) ? null : geometryOf(shape, entry);
    if (!geometry) return null;
    return moved(shape.kind === "box" ? corners(geometry) : coordinates(shape, geometry));
  });
  const box = ownBox(entry);
  const look = lookOf(stage, entry);
  const name = look.marks.find(({ label }) => label)?.label?.name ?? "";
  return { entry, name, look, points, box: box && moved(corners(box)), offset: { x: 0, y: 0 }, correctedAt: 0 };
}

/**
 * @param {ShownStage} stage
 * @param {Late} late
 * @param {number} width
 * @param {number} height
 * @param {number} alpha
 * @returns {SceneEntry | null} Null: no part of it lies in the image.
 */
function lateEntry({ shapes }, { entry, look, points, box }, width, height, alpha) {
  const inImage = (/** @type {Point[]} */ found) => found.flatMap(({ x, y }) => [(x + 0.5) * width, y * width + height / 2]);
  const all = [...points, box].flatMap((found) => (found ? inImage(found) : []));
  const bounds = all.length ? around(all) : null;
  if (bounds && !(bounds.x2 > 0 && bounds.x1 < width && bounds.y2 > 0 && bounds.y1 < height)) return null;
  const geometry = shapes.map((shape, i) => {
    const found = points[i] && inImage(points[i]);
    if (!found) return null;
    return shape.kind === "box" ? around(found) : placed(shape, geometryOf(shape, entry), found, 1, 1);
  });
  return { entry, box: box ? around(inImage(box)) : bounds, geometry, look, alpha };
}

/** @param {Box} box */
function corners({ x1, y1, x2, y2 }) {
  return [x1, y1, x2, y1, x2, y2, x1, y2];
}

/**
 * @param {number[]} flat
 * @returns {Point[]}
 */
function pairs(flat) {
  return Array.from({ length: flat.length / 2 }, (_, i) => ({ x: flat[2 * i], y: flat[2 * i + 1] }));
}

/**
 * Lets an entry that is shown already move to its new position gradually, so that it does not jump.
 * @param {Late} entry Gets the offset from its new position to the shown one.
 * @param {Late[]} before The shown entries; the matched one is removed, so that it is matched once.
 * @param {number} now
 */
function keepPosition(entry, before, now) {
  const to = centre(entry);
  const off = (/** @type {Late} */ other) => {
    const from = centre(other);
    return { x: from.x - to.x, y: from.y - to.y };
  };
  const far = (/** @type {Late} */ other) => Math.hypot(off(other).x, off(other).y);
  const same = before.filter((other) => other.name === entry.name && far(other) < SAME_TEXT);
  if (!same.length) return;
  const nearest = same.reduce((best, other) => (far(other) < far(best) ? other : best));
  before.splice(before.indexOf(nearest), 1);
  Object.assign(entry, { offset: off(nearest), correctedAt: now });
}

/** @param {Late} entry */
function centre({ points, box }) {
  const all = points.find((found) => found) ?? box ?? [];
  const sum = all.reduce((total, { x, y }) => ({ x: total.x + x, y: total.y + y }), { x: 0, y: 0 });
  return { x: sum.x / all.length, y: sum.y / all.length };
}

// --- what belongs to the whole image ---

/**
 * The fields of vectors in a part, without the camera's motion, in pixels of the image.
 * @param {ShownStage} stage
 * @param {any} value The part.
 * @param {{width: number, height: number}} image
 * @returns {Layer["flows"]}
 */
function flowsOf({ shapes }, value, image) {
  /** @type {Layer["flows"]} */
  const flows = new Map();
  const [entry] = entriesOf(value);
  for (const shape of shapes) {
    const geometry = entry && image.width && UNMOVED.has(shape.kind) ? geometryOf(shape, entry) : null;
    if (!geometry || shape.kind === "label") continue;
    const camera = shape.camera && valueAt(entry, shape.camera);
    const flow =
      shape.kind === "arrow"
        ? { columns: 1, rows: 1, vectors: Float32Array.of(geometry.dx, geometry.dy) }
        : fieldOf(geometry, camera ? similarity(camera, image.width) : STILL, image);
    flows.set(shape, { flow, shown: null });
  }
  return flows;
}

/**
 * The motion in each cell of a field without the camera's.
 * @param {{columns: number, rows: number, scale: number, data: string}} field
 * @param {Similarity} camera
 * @param {{width: number, height: number}} image
 * @returns {Flow} In pixels of the image.
 */
function fieldOf({ columns, rows, scale, data }, camera, image) {
  const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
  const vectors = Float32Array.from(new Int8Array(bytes.buffer), (unit) => unit * scale);
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
 * A field of vectors in pixels of the shown image.
 * @param {Layer} layer
 * @param {ShownShape} shape
 * @param {number} across Pixels of the shown image per pixel of the frame, horizontally.
 * @param {number} down Pixels of the shown image per pixel of the frame, vertically.
 * @returns {Flow | null}
 */
function scaledFlow({ flows }, shape, across, down) {
  const found = flows.get(shape);
  if (!found) return null;
  if (found.shown?.across !== across || found.shown.down !== down) {
    const { columns, rows, vectors } = found.flow;
    const flow = { columns, rows, vectors: vectors.map((value, i) => value * (i % 2 ? down : across)) };
    found.shown = { flow, across, down };
  }
  return found.shown.flow;
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

const REMEMBERED_MS = 60_000; // length of the path; where something of an earlier frame is by now is unknown
const STILL = { turn: { x: 1, y: 0 }, shift: { x: 0, y: 0 } };

/**
 * The camera's motion as a similarity.
 * @param {CameraMove} camera In pixels of a frame.
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
 * @param {Similarity} move
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
   * @returns {{move: Similarity, capturedAt: number}} `capturedAt` is the capture time of the earlier frame.
   */
  since(ageMs) {
    const last = this.#steps.at(-1);
    if (!last) return { move: STILL, capturedAt: 0 };
    let from = this.#steps.length - 1;
    const off = (/** @type {number} */ index) => Math.abs(last.answeredAt - ageMs - this.#steps[index].answeredAt);
    while (from > 0 && off(from - 1) < off(from)) from -= 1;
    const move = this.#steps.slice(from + 1).reduce((sum, { step }) => (step ? after(sum, step) : sum), STILL);
    return { move, capturedAt: this.#steps[from].at };
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
    const move = recent.reduce((sum, { step }) => (step ? after(sum, step) : sum), STILL);
    return partOf(move, aheadOf(last.at, now) / took);
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
 * @param {Similarity} move
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
const LATE_FADED_MS = 4000; // … what is late anyway fades later, because it follows the camera
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
 * The opacity of a late entry.
 * @param {number} ageMs Age of the frame with the camera's latest known position.
 * @param {number} readMs Age of the frame that shows the entry.
 */
function lateFreshness(ageMs, readMs) {
  return Math.min(freshness(ageMs), fade(readMs, LATE_FADED_MS));
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
  /** @type {ShownStage[]} */
  stages = [];
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
    const other = this.stages.filter(({ name, late, shapes }) => {
      const ageMs = result.stages[name]?.age_ms ?? (late ? 0 : null);
      const before = ageMs !== null && capturedAt - ageMs < this.#at;
      return before || (this.#first && shapes.some(({ camera }) => camera));
    });
    this.#first = false;
    return without(result, other);
  }
}
