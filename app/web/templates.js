// Texts with fields of an entry in braces: labels and figures, as `ready.stages` declares them. No DOM.

import { classLabel } from "./text.js";

/**
 * @typedef {object} Label
 * @property {string} name
 * @property {string} figures The numbers after it, which stay where the name is shortened.
 */
/**
 * @typedef {object} Template A text with fields of an entry in braces, such as `{class_name} {confidence}`.
 * @property {string[][]} paths Of its fields.
 * @property {(entry: any) => string} text
 * @property {(entry: any) => Label} label
 * @property {(entry: any) => string} first The text of its first field.
 */
/** @typedef {{path: string[], format: string, before: string}} Field A field, and the text before it. */

/**
 * Reads a template. A field is a path with dots, perhaps with a format after a colon: `percent`, `arrow` and `direction` of
 * degrees, `.3` for as many decimals. A field that an entry lacks is left out together with the space before it.
 * @param {string} written
 * @returns {Template}
 */
export function template(written) {
  /** @type {Field[]} */
  const fields = [];
  let end = 0;
  for (const { 0: whole, 1: path, 2: format = "", index } of written.matchAll(/\{([\w.]+)(?::([\w.]+))?\}/g)) {
    fields.push({ path: path.split("."), format, before: written.slice(end, index) });
    end = index + whole.length;
  }
  const after = written.slice(end);
  const label = (/** @type {any} */ entry) => {
    const parts = fields.map((field) => rendered(entry, field));
    const first = 1 + parts.findLastIndex(({ number, text }) => !number && text !== "");
    const split = after ? fields.length : first;
    return { name: joined(fields, parts, 0, split) + after, figures: joined(fields, parts, split, fields.length) };
  };
  return {
    paths: fields.map(({ path }) => path),
    label,
    first: (entry) => rendered(entry, fields[0]).text,
    text: (entry) => {
      const parts = fields.map((field) => rendered(entry, field));
      return (joined(fields, parts, 0, fields.length) + after).trim();
    },
  };
}

/**
 * @param {Field[]} fields
 * @param {{text: string}[]} parts Their texts.
 * @param {number} from
 * @param {number} to
 */
function joined(fields, parts, from, to) {
  let text = "";
  for (let i = from; i < to; i += 1) {
    const before = parts[i].text === "" ? fields[i].before.trimEnd() : fields[i].before;
    text += (text || from ? before : before.trimStart()) + parts[i].text;
  }
  return text;
}

/**
 * @param {any} entry
 * @param {Field} field
 * @returns {{text: string, number: boolean}}
 */
function rendered(entry, { path, format }) {
  const value = valueAt(entry, path);
  const key = path[path.length - 1];
  const number = typeof value === "number";
  if (key === "class_name" && typeof value === "string") {
    return { text: classLabel(value, valueAt(entry, [...path.slice(0, -1), "class_id"]) ?? ""), number };
  }
  if (number) return { text: formatted(value, format || FORMATS_BY_NAME[key] || ""), number };
  if (Array.isArray(value)) return { text: value.join(", "), number };
  return { text: value === null || value === undefined || typeof value === "object" ? "" : String(value), number };
}

/** @type {Record<string, string>} */
const FORMATS_BY_NAME = { confidence: "percent", track_id: "id" };

/**
 * @param {number} value
 * @param {string} format
 */
function formatted(value, format) {
  if (format === "percent") return `${Math.round(value * 100)}%`;
  if (format === "id") return `#${value}`;
  if (format === "arrow") return ARROWS[Math.round(value / 45) % 8];
  if (format === "direction") return DIRECTIONS[Math.round(value / 45) % 8];
  if (/^\.\d$/.test(format)) return value.toFixed(Number(format[1]));
  return String(Number(value.toFixed(2)));
}

const ARROWS = "→↘↓↙←↖↑↗";
const DIRECTIONS = ["right", "down and right", "down", "down and left", "left", "up and left", "up", "up and right"];

/**
 * The value at a path, or undefined.
 * @param {any} from
 * @param {string[]} path
 * @returns {any}
 */
export function valueAt(from, path) {
  let value = from;
  for (const key of path) {
    if (value === null || typeof value !== "object" || !Object.hasOwn(value, key)) return undefined;
    value = value[key];
  }
  return value;
}
