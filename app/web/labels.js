// The labels of a scene: where there is room for them, and clear of each other.

/** @import { Pen, Place } from "./paint.js" */
/** @typedef {{x: number, y: number, width: number, height: number}} Rectangle Canvas pixels. */

const LABEL_PX = 20;
const MOST_PX = 360; // a longer one hides more than it says
const MOST_LETTERS = 80;

/**
 * A label above its thing where there is room, else inside or below it; in the picture, and clear of others.
 * @param {Pen} pen
 * @param {string} name Is cut where it is longer than the picture is wide.
 * @param {string} figures Stand after it, whole.
 * @param {Rectangle} thing
 * @param {string} colour
 * @param {number} alpha
 * @param {Place} place
 * @param {Rectangle} bounds
 * @param {Rectangle[]} taken
 */
export function label(pen, name, figures, thing, colour, alpha, { unit }, bounds, taken) {
  const height = LABEL_PX * unit;
  const words = fitting(pen, name, figures, Math.min(MOST_PX * unit, bounds.width) - 10 * unit);
  const width = Math.min(measure(pen, words) + 10 * unit, bounds.width);
  const left = Math.max(bounds.x, Math.min(thing.x, bounds.x + bounds.width - width));
  const right = Math.max(bounds.x, Math.min(thing.x + thing.width, bounds.x + bounds.width) - width);
  const inside = [thing.y - height - unit, thing.y + 2 * unit, thing.y + thing.height + unit]
    .filter((y) => y >= bounds.y && y + height <= bounds.y + bounds.height)
    .flatMap((y) => [left, right].map((x) => ({ x, y, width, height })));
  const free = inside.find((one) => !taken.some((other) => overlap(other, one)));
  const { x, y } = free ?? inside[0] ?? { x: left, y: bounds.y };
  taken.push({ x, y, width, height });
  pen.globalAlpha = alpha * 0.9;
  pen.fillStyle = "#10151c";
  pen.beginPath();
  pen.roundRect(x, y, width, height, 4 * unit);
  pen.fill();
  pen.globalAlpha = alpha;
  pen.fillStyle = colour;
  pen.fillRect(x, y + 3 * unit, 3 * unit, height - 6 * unit);
  pen.fillText(words, x + 7 * unit, y + height / 2 + 0.5 * unit, width - 9 * unit);
}

/**
 * @param {Pen} pen
 * @param {string} name
 * @param {string} figures
 * @param {number} room
 */
function fitting(pen, name, figures, room) {
  const after = figures && ` ${figures}`;
  if (name.length <= MOST_LETTERS && measure(pen, name + after) <= room) return name + after;
  const least = measure(pen, `…${after}`);
  const letters = [...name.slice(0, MOST_LETTERS)];
  while (letters.length > 1 && measure(pen, letters.join("")) + least > room) letters.length = Math.floor(letters.length * 0.9);
  return `${letters.join("").trim()}…${after}`;
}

/** @type {Map<string, number>} */
const widths = new Map();

/**
 * @param {Pen} pen
 * @param {string} words
 */
function measure(pen, words) {
  const key = `${pen.font} ${words}`;
  let width = widths.get(key);
  if (width === undefined) {
    if (widths.size > 2000) widths.clear();
    width = pen.measureText(words).width;
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
