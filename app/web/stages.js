// The service's stages as the page shows them: `ready.stages` is interpreted once, so that drawing a frame needs no paths and
// no templates. No stage is known here by name. No DOM.

import { template, valueAt } from "./templates.js";

/** @import { Box, Models, Result, ShapeKind, StageDescription } from "./protocol.js" */
/** @import { Label, Template } from "./templates.js" */

/**
 * @typedef {object} ShownShape How the entries of a part are drawn.
 * @property {ShapeKind} kind
 * @property {string[]} path From the entry to its geometry.
 * @property {Template | null} label
 * @property {(entry: any) => string | null} colour Null: the colour that the kind of shape has by itself.
 * @property {number} least
 * @property {[number, number][]} lines Pairs of indices of points.
 * @property {string[] | null} camera Path from the entry to the motion of the whole image.
 */
/**
 * @typedef {object} ShownFigure A text about a part, beside the image.
 * @property {"figures" | "status" | "sentence"} place
 * @property {(value: any) => string} render Empty where there is nothing to say.
 */
/**
 * @typedef {object} ShownStage
 * @property {string} name
 * @property {string} title
 * @property {string} description
 * @property {string | null} field Of a result; null where the stage adds to the fields of others.
 * @property {boolean} late Whether the entries may be of an earlier frame.
 * @property {ShownShape[]} shapes
 * @property {ShownFigure[]} figures
 */

const KINDS = new Set(["box", "polygon", "polyline", "mask", "points", "label", "arrow", "field"]);

/**
 * Interprets what the service declares. A kind of shape that this page does not know is left out.
 * @param {StageDescription[]} stages
 * @param {Models} models
 * @returns {ShownStage[]}
 */
export function interpreted(stages, models) {
  return stages.map(({ name, title, description, field, late, shapes, figures }) => ({
    name,
    title,
    description,
    field,
    late: Boolean(late),
    shapes: shapes.filter(({ kind }) => KINDS.has(kind)).map((shape) => shownShape(shape, models[name])),
    figures: (figures ?? []).map(shownFigure),
  }));
}

/**
 * @param {StageDescription["shapes"][number]} shape
 * @param {Models[string]} model Of its stage.
 * @returns {ShownShape}
 */
function shownShape({ kind, at, label, colour, least, lines, camera }, model) {
  const text = label ? template(label) : null;
  return {
    kind,
    path: pathOf(at),
    label: text,
    colour: colourOf(colour ?? "class", text),
    least: least ?? 0,
    lines: lines ? (valueAt(model, pathOf(lines)) ?? []) : [],
    camera: camera ? pathOf(camera) : null,
  };
}

/**
 * Returns the function that gives an entry's colour.
 * @param {string} colour `class`, `#rrggbb` or `{field}`.
 * @param {Template | null} label Where an entry has no class of its own, the class that its label names counts.
 * @returns {(entry: any) => string | null}
 */
function colourOf(colour, label) {
  if (colour.startsWith("#")) return () => colour;
  const path = pathOf(colour.replace(/^\{|\}$/g, ""));
  if (colour.startsWith("{")) {
    return (entry) => {
      const rgb = valueAt(entry, path);
      if (!Array.isArray(rgb) || rgb.length !== 3) return null;
      return `rgb(${rgb.map((value) => Math.round(Number(value)) || 0).join(" ")})`;
    };
  }
  const named = label?.paths.find((fields) => fields.at(-1) === "class_name");
  const paths = [["class_id"], ...(named ? [[...named.slice(0, -1), "class_id"]] : [])];
  return (entry) => {
    const id = paths.map((fields) => valueAt(entry, fields)).find((value) => typeof value === "number");
    return id === undefined ? null : classColour(id);
  };
}

/**
 * The colour of a class: hues a golden angle apart, all light enough for a dark background.
 * @param {number} classId
 */
export function classColour(classId) {
  return `hsl(${Math.round((145 + classId * 137.508) % 360)} 90% 65%)`;
}

/**
 * @param {NonNullable<StageDescription["figures"]>[number]} figure
 * @returns {ShownFigure}
 */
function shownFigure({ place, text, where, least }) {
  const words = template(text);
  const path = where ? pathOf(where) : null;
  return {
    place,
    render: (value) => {
      const entries = entriesOf(value);
      if (!entries.length || (path && !(valueAt(entries[0], path) >= (least ?? 0)))) return "";
      return words.text(Array.isArray(value) ? { count: entries.length, ...entries[0] } : value);
    },
  };
}

/**
 * The entries of a part: its list, or the one thing that it is.
 * @param {any} value
 * @returns {any[]}
 */
export function entriesOf(value) {
  return (Array.isArray(value) ? value : [value]).filter((entry) => entry !== null && typeof entry === "object");
}

/**
 * A copy of a result without the parts of some stages.
 * @param {Result} result
 * @param {ShownStage[]} stages
 * @returns {Result}
 */
export function without(result, stages) {
  const fields = stages.flatMap(({ field }) => (field === null ? [] : [field]));
  return { ...result, ...Object.fromEntries(fields.map((field) => [field, Array.isArray(result[field]) ? [] : null])) };
}

/**
 * What the stages say about a result in one place beside the image.
 * @param {ShownStage} stage
 * @param {ShownFigure["place"]} place
 * @param {Result | null} result
 */
export function figureText({ field, figures }, place, result) {
  const value = field === null || !result ? null : result[field];
  return figures.filter((figure) => figure.place === place).map(({ render }) => render(value)).filter(Boolean).join(", ");
}

/**
 * The classes that the session's settings choose from: those of the first model that has any.
 * @param {ShownStage[]} stages
 * @param {Models} models
 * @returns {{name: string, classes: string[]} | null}
 */
export function modelWithClasses(stages, models) {
  for (const { name } of stages) {
    const model = models[name];
    if (model && typeof model === "object" && Array.isArray(model.classes)) return { name: model.name, classes: model.classes };
  }
  return null;
}

/**
 * The display name of a model.
 * @param {Models[string]} model
 */
export function modelName(model) {
  return typeof model === "string" ? model : (model?.name ?? null);
}

/** @param {string | undefined} dotted */
function pathOf(dotted) {
  return dotted ? dotted.split(".") : [];
}

// --- geometry ---
//
// Each kind of shape has its geometry as the wire has it, and as a flat list of coordinates, x and y in turn, which moves.

/**
 * An entry's geometry as the wire has it.
 * @param {ShownShape} shape
 * @param {any} entry
 * @returns {any} Null where the entry has none that can be drawn.
 */
export function geometryOf({ kind, path }, entry) {
  const found = valueAt(entry, path);
  if (found === null || typeof found !== "object") return null;
  if (kind === "box" || kind === "label") return boxOf(found);
  if (kind === "field") return found.data && found.columns > 0 && found.rows > 0 ? found : null;
  if (kind === "arrow") return Number.isFinite(found.dx) && Number.isFinite(found.dy) ? found : null;
  if (!Array.isArray(found) || !found.length || !found.every((part) => part !== null && typeof part === "object")) return null;
  return kind === "points" || rings(found).every((ring) => ring.every(Array.isArray)) ? found : null;
}

/**
 * @param {any} found
 * @returns {Box | null}
 */
function boxOf(found) {
  return [found?.x1, found?.y1, found?.x2, found?.y2].every(Number.isFinite) ? found : null;
}

/**
 * The box that the entry itself has.
 * @param {any} entry
 */
export function ownBox(entry) {
  return boxOf(valueAt(entry, ["box"]));
}

/**
 * The shape that is the box of `anchorOf`.
 * @param {Pick<ShownStage, "shapes">} stage
 * @param {any} entry
 */
export function anchorShape({ shapes }, entry) {
  const own = ownBox(entry);
  return shapes.find((shape) => shape.kind === "box" && (own ? shape.path.join() === "box" : geometryOf(shape, entry)));
}

/**
 * The box that an entry stands for: its own, else that of a shape, else the one around its shapes.
 * @param {ShownStage} stage
 * @param {any} entry
 * @returns {Box | null} Null where it has no place in the image.
 */
export function anchorOf({ shapes }, entry) {
  const own = ownBox(entry);
  if (own) return own;
  const boxed = anchorShape({ shapes }, entry) ?? shapes.find((shape) => shape.kind === "label" && geometryOf(shape, entry));
  if (boxed) return geometryOf(boxed, entry);
  const flat = shapes.flatMap((shape) => {
    const geometry = geometryOf(shape, entry);
    return geometry ? coordinates(shape, geometry) : [];
  });
  return flat.length ? around(flat) : null;
}

/**
 * The coordinates of a geometry, x and y in turn.
 * @param {ShownShape} shape
 * @param {any} geometry
 * @returns {number[]}
 */
export function coordinates({ kind }, geometry) {
  if (kind === "box") return [geometry.x1, geometry.y1, geometry.x2, geometry.y2];
  if (kind === "points") return geometry.flatMap((/** @type {{x: number, y: number}} */ { x, y }) => [x, y]);
  if (kind === "polygon" || kind === "polyline" || kind === "mask") return rings(geometry).flat(2);
  return [];
}

/**
 * How many coordinates a geometry has, ring by ring. Geometries with the same can go over into each other.
 * @param {ShownShape} shape
 * @param {any} geometry
 */
export function sizesOf({ kind }, geometry) {
  if (kind === "points") return String(geometry.length);
  return rings(geometry).map(({ length }) => length).join();
}

/**
 * A geometry of the same form with other coordinates.
 * @param {ShownShape} shape
 * @param {any} geometry
 * @param {ArrayLike<number>} flat As `coordinates` has them, divided by …
 * @param {number} width … this those to the right …
 * @param {number} height … and by this those down.
 * @returns {any}
 */
export function placed({ kind }, geometry, flat, width, height) {
  if (kind === "box") return { x1: flat[0] * width, y1: flat[1] * height, x2: flat[2] * width, y2: flat[3] * height };
  if (kind === "points") {
    return geometry.map((/** @type {object} */ point, /** @type {number} */ i) => {
      return { ...point, x: flat[2 * i] * width, y: flat[2 * i + 1] * height };
    });
  }
  let at = 0;
  const moved = rings(geometry).map((ring) => ring.map(() => [flat[at++] * width, flat[at++] * height]));
  return isRing(geometry) ? moved[0] : moved;
}

/**
 * The rings of a polygon, the lines of a polyline.
 * @param {any[]} geometry One of them, or a list.
 * @returns {[number, number][][]}
 */
export function rings(geometry) {
  return isRing(geometry) ? [geometry] : geometry;
}

/** @param {any[]} geometry */
function isRing(geometry) {
  return typeof geometry[0][0] === "number";
}

/**
 * The box around coordinates.
 * @param {ArrayLike<number>} flat
 * @returns {Box}
 */
export function around(flat) {
  const box = { x1: Infinity, y1: Infinity, x2: -Infinity, y2: -Infinity };
  for (let i = 0; i + 1 < flat.length; i += 2) {
    box.x1 = Math.min(box.x1, flat[i]);
    box.x2 = Math.max(box.x2, flat[i]);
    box.y1 = Math.min(box.y1, flat[i + 1]);
    box.y2 = Math.max(box.y2, flat[i + 1]);
  }
  return box;
}

/** @typedef {{marks: {colour: string | null, label: Label | null}[]}} Look */

/**
 * What of an entry's looks does not change until the next result.
 * @param {ShownStage} stage
 * @param {any} entry
 * @returns {Look}
 */
export function lookOf({ shapes }, entry) {
  return { marks: shapes.map(({ colour, label }) => ({ colour: colour(entry), label: label && label.label(entry) })) };
}
