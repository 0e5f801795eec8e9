// Draws the scene over the image: the overlay, boxes, skeletons, texts, labels and the arrows of the flow.

import { classLabel } from "./text.js";

/** @import { Flow, Scene, SceneObject, ScenePose, SceneText, Tracks } from "./tracks.js" */
/** @typedef {CanvasRenderingContext2D | OffscreenCanvasRenderingContext2D} Context */
/**
 * @typedef {object} Place Position and scale of the scene on the canvas.
 * @property {number} x
 * @property {number} y
 * @property {number} scale Canvas pixels per pixel of the scene.
 * @property {number} unit Canvas pixels per CSS pixel. Line widths and font sizes are multiples of it.
 */
/** @typedef {{x: number, y: number, width: number, height: number}} Rectangle In canvas pixels. */

const MOST_DENSITY = 2; // more canvas pixels per CSS pixel cost time without a visible gain
const EDGE = "rgb(0 0 0 / 0.6)";
const LEAST_KEYPOINT = 0.3; // confidence
const LEFT = "#4dd8ff";
const RIGHT = "#ffa14d";
const MIDDLE = "#ffffff";
const TEXT = "#ffe14d";
const FONT_PX = 13;
const LABEL_PX = 20;
const MOST_PX = 360; // a longer label hides too much of the image
const MOST_LETTERS = 80;
const ARROW_LENGTH = 2.5; // arrows are longer than the motion of one frame, because walking is a pixel or two a frame
const ARROW_SPACE_PX = 24;
const FLOW_ALPHA = 0.85;

/**
 * Draws the scene of `tracks` at the display's rate, over an image that is laid out with `object-fit: contain` in the same
 * rectangle.
 */
export class Overlay {
  /**
   * The scene as last drawn, in pixels of the image. Tests and pages that embed this read it.
   * @type {Scene}
   */
  model = { width: 0, height: 0, objects: [], poses: [], texts: [], motion: null, flow: null, flowAlpha: 0 };
  /**
   * Called after each drawn frame, with its time.
   * @type {(now: number) => void}
   */
  ondraw = () => {};
  /**
   * Returns the size of the image; 0 × 0 while there is no source.
   * @type {() => {width: number, height: number}}
   */
  size = () => ({ width: 0, height: 0 });
  /**
   * The limbs to draw, as pairs of indices of keypoints.
   * @type {[number, number][]}
   */
  skeleton = [];
  #canvas;
  #tracks;
  #context;
  #density = 1;
  #request = 0;
  #blank = true;

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {Tracks} tracks
   */
  constructor(canvas, tracks) {
    this.#canvas = canvas;
    this.#tracks = tracks;
    this.#context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    new ResizeObserver(([entry]) => this.#resize(entry.contentRect)).observe(canvas);
  }

  /** Starts to draw. */
  start() {
    if (!this.#request) this.#request = requestAnimationFrame((now) => this.#draw(now));
  }

  /** Stops drawing, forgets the tracks and clears the canvas. */
  stop() {
    cancelAnimationFrame(this.#request);
    this.#request = 0;
    this.#tracks.clear();
    this.#show(performance.now());
  }

  /**
   * Where the image lies on the canvas.
   * @returns {Place}
   */
  get place() {
    const { width, height } = this.model;
    const scale = width && height ? Math.min(this.#canvas.width / width, this.#canvas.height / height) : 0;
    return {
      x: (this.#canvas.width - width * scale) / 2,
      y: (this.#canvas.height - height * scale) / 2,
      scale,
      unit: this.#density,
    };
  }

  /** @param {number} now */
  #draw(now) {
    this.#request = requestAnimationFrame((next) => this.#draw(next));
    // `now` is the start of the display's frame, and results may have come since
    this.#show(Math.max(now, performance.now()));
    this.ondraw(now);
  }

  /** @param {number} now */
  #show(now) {
    this.model = this.#tracks.at(now, this.size());
    const { objects, poses, texts, flow } = this.model;
    const blank = !objects.length && !poses.length && !texts.length && !flow;
    if (!blank || !this.#blank) this.#context.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
    if (!blank) paint(this.#context, this.model, this.place, this.skeleton);
    this.#blank = blank;
  }

  /** @param {DOMRectReadOnly} rectangle */
  #resize({ width, height }) {
    this.#density = Math.min(MOST_DENSITY, devicePixelRatio || 1);
    this.#canvas.width = Math.round(width * this.#density);
    this.#canvas.height = Math.round(height * this.#density);
    this.#blank = true;
    this.#show(performance.now());
  }
}

// --- the scene ---

/**
 * The colour of a class: hues a golden angle apart, all light enough for a dark background.
 * @param {number} classId
 */
export function classColour(classId) {
  return `hsl(${Math.round((145 + classId * 137.508) % 360)} 90% 65%)`;
}

/**
 * Draws a scene. Every line has a dark edge and every label a dark background, so that both are visible on any image.
 * @param {Context} context
 * @param {Scene} scene
 * @param {Place} place
 * @param {[number, number][]} skeleton
 */
export function paint(context, scene, place, skeleton) {
  /** @type {Rectangle[]} */
  const labels = [];
  const bounds = { x: place.x, y: place.y, width: scene.width * place.scale, height: scene.height * place.scale };
  context.save();
  context.lineJoin = context.lineCap = "round";
  context.font = `600 ${FONT_PX * place.unit}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  if (scene.flow) paintFlow(context, scene, scene.flow, place);
  for (const pose of scene.poses) paintPose(context, scene, pose, place, skeleton);
  for (const object of scene.objects) paintBox(context, object, place);
  if (scene.texts.length) {
    context.save();
    context.beginPath();
    context.rect(bounds.x, bounds.y, bounds.width, bounds.height);
    context.clip();
    for (const text of scene.texts) paintText(context, text, place);
    context.restore();
  }
  // Labels come last, so that nothing covers them, and each avoids those before it. Small objects get theirs last,
  // because there is room around them.
  const largestFirst = [...scene.objects].sort((a, b) => area(b.box) - area(a.box));
  for (const { box, class_id, class_name, confidence, track_id, alpha } of largestFirst) {
    const figures = `${Math.round(confidence * 100)}%${track_id === null ? "" : ` #${track_id}`}`;
    label(context, classLabel(class_name, class_id), figures, onCanvas(box, place), classColour(class_id), alpha, place, bounds, labels);
  }
  for (const { text, polygon, alpha } of scene.texts) {
    label(context, text, "", onCanvas(around(polygon), place), TEXT, alpha, place, bounds, labels);
  }
  context.restore();
}

/**
 * Draws the box of an object.
 * @param {Context} context
 * @param {SceneObject} object
 * @param {Place} place
 */
function paintBox(context, { box, class_id, alpha }, place) {
  const { x, y, width, height } = onCanvas(box, place);
  context.globalAlpha = alpha;
  context.beginPath();
  context.roundRect(x, y, width, height, 3 * place.unit);
  stroke(context, 2, classColour(class_id), place.unit);
}

/**
 * Draws a skeleton. Keypoints on the very edge of the image were clipped to it, so that their real position is unknown; those
 * are left out.
 * @param {Context} context
 * @param {Scene} scene
 * @param {ScenePose} pose
 * @param {Place} place
 * @param {[number, number][]} skeleton
 */
function paintPose(context, { width, height }, { keypoints, alpha }, { x, y, scale, unit }, skeleton) {
  context.globalAlpha = alpha;
  const sure = keypoints.map((point) => {
    const inside = point.x > 1 && point.y > 1 && point.x < width - 1 && point.y < height - 1;
    return inside && point.confidence >= LEAST_KEYPOINT;
  });
  for (const colour of [MIDDLE, LEFT, RIGHT]) {
    context.beginPath();
    for (const [a, b] of skeleton) {
      if (!sure[a] || !sure[b] || limbColour(keypoints[a].name, keypoints[b].name) !== colour) continue;
      context.moveTo(x + keypoints[a].x * scale, y + keypoints[a].y * scale);
      context.lineTo(x + keypoints[b].x * scale, y + keypoints[b].y * scale);
    }
    stroke(context, 2.5, colour, unit);
  }
  context.beginPath();
  keypoints.forEach((point, i) => {
    if (!sure[i]) return;
    const [across, down] = [x + point.x * scale, y + point.y * scale];
    context.moveTo(across + 3 * unit, down);
    context.arc(across, down, 3 * unit, 0, 2 * Math.PI);
  });
  context.fillStyle = "#fff";
  context.strokeStyle = EDGE;
  context.lineWidth = 1.5 * unit;
  context.stroke();
  context.fill();
}

/**
 * @param {string} a
 * @param {string} b
 */
function limbColour(a, b) {
  if (a.startsWith("left") && b.startsWith("left")) return LEFT;
  return a.startsWith("right") && b.startsWith("right") ? RIGHT : MIDDLE;
}

/**
 * Draws the outline of a text. It is dashed where the text was read a while ago, because it may have moved since.
 * @param {Context} context
 * @param {SceneText} text
 * @param {Place} place
 */
function paintText(context, { polygon, stale, alpha }, { x, y, scale, unit }) {
  context.globalAlpha = alpha;
  context.beginPath();
  for (const [across, down] of polygon) context.lineTo(x + across * scale, y + down * scale);
  context.closePath();
  if (stale) context.setLineDash([6 * unit, 5 * unit]);
  stroke(context, 2, TEXT, unit);
  context.setLineDash([]);
}

/**
 * A box of the scene in pixels of the canvas.
 * @param {{x1: number, y1: number, x2: number, y2: number}} box
 * @param {Place} place
 * @returns {Rectangle}
 */
function onCanvas({ x1, y1, x2, y2 }, { x, y, scale }) {
  return { x: x + x1 * scale, y: y + y1 * scale, width: (x2 - x1) * scale, height: (y2 - y1) * scale };
}

/** @param {{x1: number, y1: number, x2: number, y2: number}} box */
function area({ x1, y1, x2, y2 }) {
  return (x2 - x1) * (y2 - y1);
}

/**
 * The box around a polygon.
 * @param {[number, number][]} polygon
 */
function around(polygon) {
  const xs = polygon.map(([x]) => x);
  const ys = polygon.map(([, y]) => y);
  return { x1: Math.min(...xs), y1: Math.min(...ys), x2: Math.max(...xs), y2: Math.max(...ys) };
}

/**
 * Strokes the current path in a colour with a dark edge.
 * @param {Context} context
 * @param {number} width
 * @param {string} colour
 * @param {number} unit
 */
function stroke(context, width, colour, unit) {
  context.lineWidth = (width + 2.5) * unit;
  context.strokeStyle = EDGE;
  context.stroke();
  context.lineWidth = width * unit;
  context.strokeStyle = colour;
  context.stroke();
}

// --- labels ---

/**
 * Draws a label above its object where there is room, else inside or below it; within the image and clear of other labels.
 * @param {Context} context
 * @param {string} name Shortened where the label would be wider than the image.
 * @param {string} figures Follow the name, never shortened.
 * @param {Rectangle} object
 * @param {string} colour
 * @param {number} alpha
 * @param {Place} place
 * @param {Rectangle} bounds The image.
 * @param {Rectangle[]} taken The labels drawn so far; gets this one, too.
 */
function label(context, name, figures, object, colour, alpha, { unit }, bounds, taken) {
  const height = LABEL_PX * unit;
  const text = fitting(context, name, figures, Math.min(MOST_PX * unit, bounds.width) - 10 * unit);
  const width = Math.min(measure(context, text) + 10 * unit, bounds.width);
  const left = Math.max(bounds.x, Math.min(object.x, bounds.x + bounds.width - width));
  const right = Math.max(bounds.x, Math.min(object.x + object.width, bounds.x + bounds.width) - width);
  const inside = [object.y - height - unit, object.y + 2 * unit, object.y + object.height + unit]
    .filter((y) => y >= bounds.y && y + height <= bounds.y + bounds.height)
    .flatMap((y) => [left, right].map((x) => ({ x, y, width, height })));
  const free = inside.find((place) => !taken.some((other) => overlap(other, place)));
  const { x, y } = free ?? inside[0] ?? { x: left, y: bounds.y };
  taken.push({ x, y, width, height });
  context.globalAlpha = alpha * 0.9;
  context.fillStyle = "#10151c";
  context.beginPath();
  context.roundRect(x, y, width, height, 4 * unit);
  context.fill();
  context.globalAlpha = alpha;
  context.fillStyle = colour;
  context.fillRect(x, y + 3 * unit, 3 * unit, height - 6 * unit);
  context.fillText(text, x + 7 * unit, y + height / 2 + 0.5 * unit, width - 9 * unit);
}

/**
 * The text of a label, shortened to the width.
 * @param {Context} context
 * @param {string} name
 * @param {string} figures
 * @param {number} room Canvas pixels.
 */
function fitting(context, name, figures, room) {
  const after = figures && ` ${figures}`;
  if (name.length <= MOST_LETTERS && measure(context, name + after) <= room) return name + after;
  const least = measure(context, `…${after}`);
  const letters = [...name.slice(0, MOST_LETTERS)];
  while (letters.length > 1 && measure(context, letters.join("")) + least > room) letters.length = Math.floor(letters.length * 0.9);
  return `${letters.join("").trim()}…${after}`;
}

/** @type {Map<string, number>} */
const widths = new Map();

/**
 * The width of a text; each text is measured once.
 * @param {Context} context
 * @param {string} text
 */
function measure(context, text) {
  const key = `${context.font} ${text}`;
  let width = widths.get(key);
  if (width === undefined) {
    if (widths.size > 2000) widths.clear();
    width = context.measureText(text).width;
    widths.set(key, width);
  }
  return width;
}

/**
 * @param {Rectangle} a
 * @param {Rectangle} b
 */
function overlap(a, b) {
  return a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + b.height && b.y < a.y + a.height;
}

// --- flow ---

/**
 * Layers by the context they are drawn on, because a recording has another size than the page.
 * @type {WeakMap<Context, {canvas: OffscreenCanvas | HTMLCanvasElement, flow: Flow | null, place: Place}>}
 */
const layers = new WeakMap();

/**
 * Draws the flow as arrows. Hundreds of arrows are the most expensive part of a scene and change only with a new result, so
 * they are drawn once on a layer of their own, which is then copied onto each frame.
 * @param {Context} context
 * @param {Scene} scene
 * @param {Flow} flow
 * @param {Place} place
 */
export function paintFlow(context, scene, flow, place) {
  const layer = layers.get(context) ?? { canvas: blankCanvas(), flow: null, place };
  layers.set(context, layer);
  const { width, height } = context.canvas;
  const { canvas } = layer;
  const same = canvas.width === width && canvas.height === height && samePlace(layer.place, place);
  if (!same || layer.flow !== flow) {
    Object.assign(canvas, { width, height }); // which also clears it
    Object.assign(layer, { flow, place });
    paintArrows(/** @type {Context} */ (canvas.getContext("2d")), scene, flow, place);
  }
  context.globalAlpha = FLOW_ALPHA * scene.flowAlpha;
  context.drawImage(canvas, 0, 0);
}

function blankCanvas() {
  return typeof OffscreenCanvas === "undefined" ? document.createElement("canvas") : new OffscreenCanvas(1, 1);
}

/**
 * @param {Place} a
 * @param {Place} b
 */
function samePlace(a, b) {
  return a.x === b.x && a.y === b.y && a.scale === b.scale && a.unit === b.unit;
}

/**
 * Draws an arrow in each cell that moves noticeably, clipped to the image.
 * @param {Context} context
 * @param {Scene} scene
 * @param {Flow} flow
 * @param {Place} place
 */
function paintArrows(context, { width, height }, { columns, rows, vectors }, { x, y, scale, unit }) {
  const [across, down] = [width / columns, height / rows];
  const step = Math.max(1, Math.ceil((ARROW_SPACE_PX * unit) / (across * scale))); // fewer arrows on a small image
  context.lineJoin = context.lineCap = "round";
  context.save();
  context.beginPath();
  context.rect(x, y, width * scale, height * scale);
  context.clip();
  context.beginPath();
  for (let cell = 0; cell < columns * rows; cell += 1) {
    const [column, row] = [cell % columns, Math.floor(cell / columns)];
    const [dx, dy] = [vectors[2 * cell] * ARROW_LENGTH, vectors[2 * cell + 1] * ARROW_LENGTH];
    const length = Math.hypot(dx, dy);
    if (column % step || row % step || length < width * 0.004) continue;
    const fromX = x + (column + 0.5) * across * scale;
    const fromY = y + (row + 0.5) * down * scale;
    const [toX, toY] = [fromX + dx * scale, fromY + dy * scale];
    const head = Math.min(5 * unit, length * scale * 0.5) / (length * scale);
    const [backX, backY] = [dx * scale * head, dy * scale * head];
    context.moveTo(fromX, fromY);
    context.lineTo(toX, toY);
    context.moveTo(toX - backX + backY * 0.6, toY - backY - backX * 0.6);
    context.lineTo(toX, toY);
    context.lineTo(toX - backX - backY * 0.6, toY - backY + backX * 0.6);
  }
  stroke(context, 1.25, "#b6ff6b", unit);
  context.restore();
}
