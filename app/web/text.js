// Texts for the user, made from codes and numbers. No DOM.

/** @import { Result, Stage } from "./protocol.js" */

const MOST = 10; // number of classes, and of texts, that a sentence lists; it counts the others
const LONGEST = 60; // characters of each class and text

/** @type {Record<string, string>} */
const STAGES = { detect: "Objects", pose: "Poses", ocr: "Text", motion: "Motion", track: "Tracks" };

/** @type {Record<string, string>} */
const STAGE_REASONS = {
  running: "being read",
  unreadable: "there is text, but it cannot be read",
  first_frame: "first frame",
  size_changed: "size changed",
  frame_too_small: "frame too small",
  inference_unavailable: "models unavailable",
};

/**
 * The title of a stage.
 * @param {string} name As in the protocol.
 */
export function stageTitle(name) {
  return STAGES[name] ?? name;
}

/**
 * The status of a stage, for example `ok` or `stale 0.4 s, throttled`.
 * @param {Stage | undefined} stage
 */
export function stageText(stage) {
  if (!stage) return "";
  if (stage.status === "disabled") return stage.reason && stage.reason !== "off" ? `off, ${stage.reason}` : "off";
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

/**
 * A sentence that lists what is in view. Screen readers announce it.
 * @param {Pick<Result, "objects" | "poses" | "texts" | "motion">} result
 */
export function inViewText({ objects, poses, texts, motion }) {
  /** @type {Map<string, number>} */
  const counts = new Map();
  for (const { class_name, class_id } of objects) {
    const name = shortened(classLabel(class_name, class_id));
    counts.set(name, (counts.get(name) ?? 0) + 1);
  }
  const parts = firstFew([...counts].map(([name, count]) => (count === 1 ? `1 ${name}` : `${count} × ${name}`)), "kinds");
  if (!objects.length && poses.length) parts.push(poses.length === 1 ? "1 pose" : `${poses.length} poses`);
  if (texts.length) parts.push(`text: ${firstFew(texts.map(({ text }) => `“${shortened(text)}”`), "texts").join(", ")}`);
  if (motion && motion.moving_fraction >= 0.02) parts.push(`moving ${directionText(motion.direction_deg)}`.trim());
  return parts.length ? parts.join(" · ") : "nothing recognised";
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

const DIRECTIONS = ["right", "down and right", "down", "down and left", "left", "up and left", "up", "up and right"];

/** @param {number | null} degrees 0 is right, 90 is down. */
function directionText(degrees) {
  return degrees === null ? "" : DIRECTIONS[Math.round(degrees / 45) % 8];
}
