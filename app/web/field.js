// Draws a vector field. Hundreds of arrows are the dearest thing in a scene and stand still between two results: they
// are drawn once, on a layer of their own, which is then laid over each picture.

import { stroke } from "./strokes.js";

/** @import { Pen, Place } from "./paint.js" */
/** @import { Field, Scene } from "./tracks.js" */
/** @typedef {{canvas: OffscreenCanvas | HTMLCanvasElement, field: Field | null, place: Place}} Layer */

const ARROW_LENGTH = 2.5; // longer than the way of one frame: a walk is a pixel or two
const ARROW_SPACE_PX = 24;
const ALPHA = 0.85;
/** @type {WeakMap<Pen, Layer>} By what is drawn on: a recording is of another size than the page. */
const layers = new WeakMap();

/**
 * @param {Pen} pen
 * @param {Scene} scene
 * @param {Field} field
 * @param {Place} place
 */
export function paintField(pen, scene, field, place) {
  const layer = layers.get(pen) ?? { canvas: blank(), field: null, place };
  layers.set(pen, layer);
  const { width, height } = pen.canvas;
  const { canvas } = layer;
  const same = canvas.width === width && canvas.height === height && alike(layer.place, place);
  if (!same || layer.field !== field) {
    Object.assign(canvas, { width, height }); // which clears it, too
    Object.assign(layer, { field, place });
    draw(/** @type {Pen} */ (canvas.getContext("2d")), scene, field, place);
  }
  pen.globalAlpha = ALPHA * scene.fieldAlpha;
  pen.drawImage(canvas, 0, 0);
}

function blank() {
  return typeof OffscreenCanvas === "undefined" ? document.createElement("canvas") : new OffscreenCanvas(1, 1);
}

/**
 * @param {Place} a
 * @param {Place} b
 */
function alike(a, b) {
  return a.x === b.x && a.y === b.y && a.scale === b.scale && a.unit === b.unit;
}

/**
 * Motion as a vector in each cell, cut off at the picture's edge; what hardly moves has none.
 * @param {Pen} pen
 * @param {Scene} scene
 * @param {Field} field
 * @param {Place} place
 */
function draw(pen, { width, height }, { columns, rows, vectors }, { x, y, scale, unit }) {
  const [across, down] = [width / columns, height / rows];
  const step = Math.max(1, Math.ceil((ARROW_SPACE_PX * unit) / (across * scale))); // on a small picture not each cell
  pen.lineJoin = pen.lineCap = "round";
  pen.save();
  pen.beginPath();
  pen.rect(x, y, width * scale, height * scale);
  pen.clip();
  pen.beginPath();
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
    pen.moveTo(fromX, fromY);
    pen.lineTo(toX, toY);
    pen.moveTo(toX - backX + backY * 0.6, toY - backY - backX * 0.6);
    pen.lineTo(toX, toY);
    pen.lineTo(toX - backX - backY * 0.6, toY - backY + backX * 0.6);
  }
  stroke(pen, 1.25, "#b6ff6b", unit);
  pen.restore();
}
