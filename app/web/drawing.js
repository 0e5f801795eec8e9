// Draws the scene over the image: the overlay, each kind of shape, the labels.

import { rings } from "./stages.js";
import { Scene } from "./tracks.js";

/** @import { Box, ShapeKind } from "./protocol.js" */
/** @import { ShownShape } from "./stages.js" */
/** @import { Label } from "./templates.js" */
/** @import { Flow, Tracks } from "./tracks.js" */
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
const LEFT = "#4dd8ff";
const RIGHT = "#ffa14d";
const PLAIN = "#ffffff";
const ARROWS = "#b6ff6b";
const FONT_PX = 13;
const LABEL_PX = 20;
const MOST_PX = 360; // a longer label hides too much of the image
const MOST_LETTERS = 80;
const ARROW_LENGTH = 2.5; // arrows are longer than the motion of one frame, because walking is a pixel or two a frame
const ARROW_SPACE_PX = 24;
const FLOW_ALPHA = 0.85;
const MASK_ALPHA = 0.35;
/**
 * The kinds of shapes from the lowest to the highest. Of boxes all is seen; the others end at the image's edge.
 * @type {{kinds: ShapeKind[], clipped: boolean}[]}
 */
const LEVELS = [
  { kinds: ["field", "arrow"], clipped: false }, // their layers are clipped
  { kinds: ["mask"], clipped: true },
  { kinds: ["points"], clipped: false },
  { kinds: ["box"], clipped: false },
  { kinds: ["polygon", "polyline"], clipped: true },
];

/**
 * Draws the scene of `tracks` at the display's rate, over an image that is laid out with `object-fit: contain` in the same
 * rectangle.
 */
export class Overlay {
  /**
   * The scene as last drawn, in pixels of the image. Tests and pages that embed this read it.
   * @type {Scene}
   */
  model = new Scene(0, 0, []);
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
    const { blank } = this.model;
    if (!blank || !this.#blank) this.#context.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
    if (!blank) paint(this.#context, this.model, this.place);
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
 * Draws a scene. Every line has a dark edge and every label a dark background, so that both are visible on any image.
 * @param {Context} context
 * @param {Scene} scene
 * @param {Place} place
 */
export function paint(context, scene, place) {
  const bounds = { x: place.x, y: place.y, width: scene.width * place.scale, height: scene.height * place.scale };
  context.save();
  context.lineJoin = context.lineCap = "round";
  context.font = `600 ${FONT_PX * place.unit}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  for (const { kinds, clipped } of LEVELS) paintLevel(context, scene, place, kinds, clipped ? bounds : null);
  paintLabels(context, scene, place, bounds);
  context.restore();
}

/**
 * Draws the shapes of some kinds.
 * @param {Context} context
 * @param {Scene} scene
 * @param {Place} place
 * @param {ShapeKind[]} kinds
 * @param {Rectangle | null} bounds At which they end.
 */
function paintLevel(context, scene, place, kinds, bounds) {
  let clipped = false;
  for (const { stage, entries, stale } of scene.layers) {
    stage.shapes.forEach((shape, i) => {
      if (!kinds.includes(shape.kind)) return;
      for (const { geometry, look, alpha } of entries) {
        if (!geometry[i]) continue;
        if (bounds && !clipped) {
          clipped = true;
          context.save();
          context.beginPath();
          context.rect(bounds.x, bounds.y, bounds.width, bounds.height);
          context.clip();
        }
        context.globalAlpha = alpha;
        // What was found a while ago may have moved since.
        if (stale) context.setLineDash([6 * place.unit, 5 * place.unit]);
        paintShape(context, scene, shape, geometry[i], look.marks[i].colour, alpha, place);
        if (stale) context.setLineDash([]);
      }
    });
  }
  if (clipped) context.restore();
}

/**
 * @param {Context} context
 * @param {Scene} scene
 * @param {ShownShape} shape
 * @param {any} geometry
 * @param {string | null} colour Null: that of the kind.
 * @param {number} alpha
 * @param {Place} place
 */
function paintShape(context, scene, shape, geometry, colour, alpha, place) {
  const { kind } = shape;
  if (kind === "box") paintBox(context, geometry, colour ?? PLAIN, place);
  else if (kind === "points") paintPoints(context, scene, shape, geometry, colour, place);
  else if (kind === "field" || kind === "arrow") paintFlow(context, scene, geometry, alpha, place, colour ?? ARROWS, shape);
  else {
    tracePaths(context, rings(geometry), kind !== "polyline", place);
    if (kind === "mask") {
      context.globalAlpha = alpha * MASK_ALPHA;
      context.fillStyle = colour ?? PLAIN;
      context.fill();
      context.globalAlpha = alpha;
    }
    stroke(context, kind === "mask" ? 1.5 : 2, colour ?? PLAIN, place.unit);
  }
}

/**
 * @param {Context} context
 * @param {Box} box
 * @param {string} colour
 * @param {Place} place
 */
function paintBox(context, box, colour, place) {
  const { x, y, width, height } = onCanvas(box, place);
  context.beginPath();
  context.roundRect(x, y, width, height, 3 * place.unit);
  stroke(context, 2, colour, place.unit);
}

/**
 * Makes polygons or lines the current path.
 * @param {Context} context
 * @param {[number, number][][]} paths
 * @param {boolean} closed
 * @param {Place} place
 */
function tracePaths(context, paths, closed, { x, y, scale }) {
  context.beginPath();
  for (const path of paths) {
    path.forEach(([across, down], i) => {
      if (i) context.lineTo(x + across * scale, y + down * scale);
      else context.moveTo(x + across * scale, y + down * scale);
    });
    if (closed) context.closePath();
  }
}

/**
 * Draws points and the lines between them. Points on the very edge of the image were clipped to it, so that their real position
 * is unknown; those are left out. Lines have a colour for the left side and one for the right, where the points' names tell.
 * @param {Context} context
 * @param {Scene} scene
 * @param {ShownShape} shape
 * @param {{name?: string, x: number, y: number, confidence?: number}[]} points
 * @param {string | null} middle The colour of the other lines.
 * @param {Place} place
 */
function paintPoints(context, { width, height }, { least, lines }, points, middle, { x, y, scale, unit }) {
  const sure = points.map((point) => {
    const inside = point.x > 1 && point.y > 1 && point.x < width - 1 && point.y < height - 1;
    return inside && (point.confidence ?? 1) >= least;
  });
  for (const colour of [null, LEFT, RIGHT]) {
    context.beginPath();
    for (const [a, b] of lines) {
      if (!sure[a] || !sure[b] || sideColour(points[a].name, points[b].name) !== colour) continue;
      context.moveTo(x + points[a].x * scale, y + points[a].y * scale);
      context.lineTo(x + points[b].x * scale, y + points[b].y * scale);
    }
    stroke(context, 2.5, colour ?? middle ?? PLAIN, unit);
  }
  context.beginPath();
  points.forEach((point, i) => {
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
 * @param {string} [a]
 * @param {string} [b]
 */
function sideColour(a = "", b = "") {
  if (a.startsWith("left") && b.startsWith("left")) return LEFT;
  return a.startsWith("right") && b.startsWith("right") ? RIGHT : null;
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

/** @param {Box | null} box */
function area(box) {
  return box ? (box.x2 - box.x1) * (box.y2 - box.y1) : Infinity;
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
 * Draws the labels of a scene. They come last, so that nothing covers them, and each avoids those before it. Of a stage small
 * things get theirs last, because there is room around them.
 * @param {Context} context
 * @param {Scene} scene
 * @param {Place} place
 * @param {Rectangle} bounds The image.
 */
function paintLabels(context, { layers }, place, bounds) {
  /** @type {Rectangle[]} */
  const taken = [];
  for (const { stage, entries, ordered } of layers) {
    if (!stage.shapes.some(({ label }) => label)) continue;
    const sorted = ordered ? entries : [...entries].sort((a, b) => area(b.box) - area(a.box));
    for (const { box, geometry, look, alpha } of sorted) {
      look.marks.forEach(({ label: text, colour }, i) => {
        if (!text || (!text.name && !text.figures)) return;
        const own = stage.shapes[i].kind === "box" ? geometry[i] : box;
        label(context, text, own && onCanvas(own, place), colour ?? PLAIN, alpha, place, bounds, taken);
      });
    }
  }
}

/**
 * Draws a label above its object where there is room, else inside or below it; within the image and clear of other labels.
 * @param {Context} context
 * @param {Label} label Its name is shortened where it would be wider than the image.
 * @param {Rectangle | null} object Null: the label is about the whole image, and goes to its upper left.
 * @param {string} colour
 * @param {number} alpha
 * @param {Place} place
 * @param {Rectangle} bounds The image.
 * @param {Rectangle[]} taken The labels drawn so far; gets this one, too.
 */
function label(context, { name, figures }, object, colour, alpha, { unit }, bounds, taken) {
  const height = LABEL_PX * unit;
  const text = fitting(context, name, figures, Math.min(MOST_PX * unit, bounds.width) - 10 * unit);
  const width = Math.min(measure(context, text) + 10 * unit, bounds.width);
  const places = object ? placesBeside(object, width, height, unit, bounds) : placesInCorner(width, height, unit, bounds);
  const free = places.find((place) => !taken.some((other) => overlap(other, place)));
  const { x, y } = free ?? places[0];
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
 * Where the label of an object may go, the best place first.
 * @param {Rectangle} object
 * @param {number} width
 * @param {number} height
 * @param {number} unit
 * @param {Rectangle} bounds
 * @returns {Rectangle[]}
 */
function placesBeside(object, width, height, unit, bounds) {
  const left = Math.max(bounds.x, Math.min(object.x, bounds.x + bounds.width - width));
  const right = Math.max(bounds.x, Math.min(object.x + object.width, bounds.x + bounds.width) - width);
  const inside = [object.y - height - unit, object.y + 2 * unit, object.y + object.height + unit]
    .filter((y) => y >= bounds.y && y + height <= bounds.y + bounds.height)
    .flatMap((y) => [left, right].map((x) => ({ x, y, width, height })));
  return inside.length ? inside : [{ x: left, y: bounds.y, width, height }];
}

/**
 * Where a label of the whole image may go: one below the other in its upper left.
 * @param {number} width
 * @param {number} height
 * @param {number} unit
 * @param {Rectangle} bounds
 * @returns {Rectangle[]}
 */
function placesInCorner(width, height, unit, bounds) {
  const rows = Math.max(1, Math.floor(bounds.height / (height + 2 * unit)));
  const [x, y] = [bounds.x + 2 * unit, bounds.y + 2 * unit];
  return Array.from({ length: rows }, (_, row) => ({ x, y: y + row * (height + 2 * unit), width, height }));
}

/**
 * The text of a label, shortened to the width.
 * @param {Context} context
 * @param {string} name
 * @param {string} figures
 * @param {number} room Canvas pixels.
 */
function fitting(context, name, figures, room) {
  if (name.length <= MOST_LETTERS && measure(context, name + figures) <= room) return name + figures;
  const least = measure(context, `…${figures}`);
  const letters = [...name.slice(0, MOST_LETTERS)];
  while (letters.length > 1 && measure(context, letters.join("")) + least > room) letters.length = Math.floor(letters.length * 0.9);
  return `${letters.join("").trim()}…${figures}`;
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
 * Layers by the context they are drawn on, because a recording has another size than the page, and by their shape.
 * @type {WeakMap<Context, Map<ShownShape, {canvas: OffscreenCanvas | HTMLCanvasElement, flow: Flow | null, place: Place}>>}
 */
const layers = new WeakMap();

/**
 * Draws the flow as arrows. Hundreds of arrows are the most expensive part of a scene and change only with a new result, so
 * they are drawn once on a layer of their own, which is then copied onto each frame.
 * @param {Context} context
 * @param {{width: number, height: number}} scene
 * @param {Flow} flow
 * @param {number} alpha
 * @param {Place} place
 * @param {string} colour
 * @param {ShownShape} shape
 */
export function paintFlow(context, scene, flow, alpha, place, colour, shape) {
  const own = layers.get(context) ?? new Map();
  const layer = own.get(shape) ?? { canvas: blankCanvas(), flow: null, place };
  layers.set(context, own.set(shape, layer));
  const { width, height } = context.canvas;
  const { canvas } = layer;
  const same = canvas.width === width && canvas.height === height && samePlace(layer.place, place);
  if (!same || layer.flow !== flow) {
    Object.assign(canvas, { width, height }); // which also clears it
    Object.assign(layer, { flow, place });
    paintArrows(/** @type {Context} */ (canvas.getContext("2d")), scene, flow, place, colour);
  }
  context.globalAlpha = FLOW_ALPHA * alpha;
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
 * @param {{width: number, height: number}} scene
 * @param {Flow} flow
 * @param {Place} place
 * @param {string} colour
 */
function paintArrows(context, { width, height }, { columns, rows, vectors }, { x, y, scale, unit }, colour) {
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
  stroke(context, 1.25, colour, unit);
  context.restore();
}
