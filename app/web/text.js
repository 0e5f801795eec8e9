// Texts for the user, made from codes and numbers. No DOM.

/** @import { Result, Stage } from "./protocol.js" */
/** @import { ShownStage } from "./stages.js" */

const MOST = 10; // number of classes, and of texts, that a sentence lists; it counts the others
const LONGEST = 60; // characters of each class and text

/** @type {Record<string, string>} */
const STAGE_REASONS = {
  running: "being read",
  unreadable: "there is text, but it cannot be read",
  first_frame: "first frame",
  size_changed: "size changed",
  frame_too_small: "frame too small",
  inference_unavailable: "models unavailable",
  not_served: "no model",
};

/**
 * The status of a stage, for example `ok` or `stale 0.4 s, throttled`.
 * @param {Stage | undefined} stage
 */
export function stageText(stage) {
  if (!stage) return "";
  if (stage.status === "disabled") {
    return stage.reason && stage.reason !== "off" ? `off, ${STAGE_REASONS[stage.reason] ?? stage.reason}` : "off";
  }
  const age = stage.age_ms === null ? "" : ` ${seconds(stage.age_ms)}`;
  const reason = stage.reason ? `, ${STAGE_REASONS[stage.reason] ?? stage.reason.replaceAll("_", " ")}` : "";
  return `${stage.status}${age}${reason}`;
}

/** @param {number} ms */
function seconds(ms) {
  return ms < 9950 ? `${(ms / 1000).toFixed(1)} s` : `${Math.round(ms / 1000)} s`;
}

/**
 * A duration as text: `40 s`, `about 3 min`.
 * @param {number} s
 */
export function duration(s) {
  if (s < 90) return `${Math.max(1, Math.round(s))} s`;
  return s < 5400 ? `about ${Math.round(s / 60)} min` : `about ${(s / 3600).toFixed(1)} h`;
}

/**
 * A position in a video: `0:07`, `1:02:03`.
 * @param {number} s
 */
export function clock(s) {
  const whole = Math.floor(s);
  const [hours, minutes, left] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (/** @type {number} */ value) => String(value).padStart(2, "0");
  return hours ? `${hours}:${two(minutes)}:${two(left)}` : `${minutes}:${two(left)}`;
}

/**
 * The label of a class. A model without names has numbers for names, or empty ones; its label is `class 3`.
 * @param {string} name
 * @param {number} id
 */
export function classLabel(name, id) {
  const trimmed = name.trim();
  return /^\d*$/.test(trimmed) ? `class ${trimmed || id}` : trimmed;
}

/**
 * A number of bytes as text.
 * @param {number} size
 */
export function bytes(size) {
  if (size < 1e6) return `${Math.round(size / 1000)} kB`;
  return size < 1e9 ? `${(size / 1e6).toFixed(1)} MB` : `${(size / 1e9).toFixed(2)} GB`;
}

// --- what is in view ---

/**
 * A sentence that lists what is in view. Screen readers announce it. Of each stage it has what the stage says itself; else
 * classes are counted, other labels quoted. What has no label is counted where no classes are.
 * @param {Result} result
 * @param {ShownStage[]} stages
 */
export function inViewText(result, stages) {
  /** @type {Map<string, number>} */
  const classes = new Map();
  /** @type {string[]} */
  const parts = [];
  /** @type {string[]} */
  const nameless = [];
  for (const { name, field, shapes, figures } of stages) {
    if (field === null) continue;
    const value = result[field];
    const own = figures.filter(({ place }) => place === "sentence");
    const label = shapes.find((shape) => shape.label)?.label;
    if (own.length) parts.push(...own.map(({ render }) => render(value)).filter(Boolean));
    else if (!Array.isArray(value) || !value.length || !shapes.length) continue;
    else if (!label?.paths.length) nameless.push(value.length === 1 ? `1 ${spaced(name)}` : `${value.length} ${spaced(name)}s`);
    else if (label.paths[0].at(-1) === "class_name") countClasses(classes, value.map((entry) => label.first(entry)));
    else {
      const quoted = value.map((entry) => label.first(entry)).filter(Boolean).map((text) => `“${shortened(text)}”`);
      const few = firstFew(quoted, `${spaced(label.paths[0].at(-1) ?? "")}s`);
      if (few.length) parts.push(`${spaced(label.paths[0].at(-1) ?? "")}: ${few.join(", ")}`);
    }
  }
  const counted = firstFew([...classes].map(([name, count]) => (count === 1 ? `1 ${name}` : `${count} × ${name}`)), "kinds");
  return [...counted, ...(classes.size ? [] : nameless), ...parts].join(" · ") || "nothing recognised";
}

/**
 * Adds the classes that a stage has found. What another stage has found, too, counts once.
 * @param {Map<string, number>} counts By class.
 * @param {string[]} found
 */
function countClasses(counts, found) {
  /** @type {Map<string, number>} */
  const own = new Map();
  for (const name of found.map(shortened)) own.set(name, (own.get(name) ?? 0) + 1);
  for (const [name, count] of own) counts.set(name, Math.max(count, counts.get(name) ?? 0));
}

/** @param {string} name An identifier. */
function spaced(name) {
  return name.replaceAll("_", " ");
}

/**
 * The first parts, and a count of the others.
 * @param {string[]} parts
 * @param {string} what
 */
function firstFew(parts, what) {
  return parts.length > MOST + 1 ? [...parts.slice(0, MOST), `${parts.length - MOST} more ${what}`] : parts;
}

/** @param {string} text */
function shortened(text) {
  return text.length > LONGEST ? `${text.slice(0, LONGEST)}…` : text;
}
