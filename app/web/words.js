// What the page says in words, made from what the service says in codes. Pure.

/** @import { Result, Stage } from "./protocol.js" */

const MOST = 10; // of one sort are said …
const LONGEST = 60; // … and so many letters of each

/** @type {Record<string, string>} */
const STAGES = { detect: "Objects", pose: "Poses", ocr: "Text", motion: "Motion", track: "Tracks" };

/** @type {Record<string, string>} */
const REASONS = {
  running: "being read",
  unreadable: "there is text, but it cannot be read",
  first_frame: "first frame",
  size_changed: "size changed",
  frame_too_small: "frame too small",
  inference_unavailable: "models unavailable",
};

/** @param {string} name Of a stage, as on the wire. */
export function stageTitle(name) {
  return STAGES[name] ?? name;
}

/**
 * How a stage went: `ok`, `stale 0.4 s, throttled`.
 * @param {Stage | undefined} stage
 */
export function stageWords(stage) {
  if (!stage) return "";
  if (stage.status === "disabled") return stage.reason && stage.reason !== "off" ? `off, ${stage.reason}` : "off";
  const age = stage.age_ms === null ? "" : ` ${seconds(stage.age_ms)}`;
  const reason = stage.reason ? `, ${REASONS[stage.reason] ?? stage.reason.replaceAll("_", " ")}` : "";
  return `${stage.status}${age}${reason}`;
}

/** @param {number} ms */
export function seconds(ms) {
  return ms < 9950 ? `${(ms / 1000).toFixed(1)} s` : `${Math.round(ms / 1000)} s`;
}

/**
 * A while in words: `40 s`, `about 3 min`.
 * @param {number} s
 */
export function duration(s) {
  if (s < 90) return `${Math.max(1, Math.round(s))} s`;
  return s < 5400 ? `about ${Math.round(s / 60)} min` : `about ${(s / 3600).toFixed(1)} h`;
}

/**
 * A place in a film: `0:07`, `1:02:03`.
 * @param {number} s
 */
export function clock(s) {
  const whole = Math.floor(s);
  const [hours, minutes, left] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (/** @type {number} */ value) => String(value).padStart(2, "0");
  return hours ? `${hours}:${two(minutes)}:${two(left)}` : `${minutes}:${two(left)}`;
}

/**
 * What a class is called; a model without names has numbers, or nothing at all.
 * @param {string} name
 * @param {number} id
 */
export function classWords(name, id) {
  const said = name.trim();
  return /^\d*$/.test(said) ? `class ${said || id}` : said;
}

/** @param {number} size */
export function bytes(size) {
  if (size < 1e6) return `${Math.round(size / 1000)} kB`;
  return size < 1e9 ? `${(size / 1e6).toFixed(1)} MB` : `${(size / 1e9).toFixed(2)} GB`;
}

/**
 * What is in view, in a sentence: for those who cannot see the picture, and for those who look elsewhere.
 * @param {Pick<Result, "objects" | "poses" | "texts" | "motion">} result
 */
export function seenWords({ objects, poses, texts, motion }) {
  /** @type {Map<string, number>} */
  const counts = new Map();
  for (const { class_name, class_id } of objects) {
    const name = short(classWords(class_name, class_id));
    counts.set(name, (counts.get(name) ?? 0) + 1);
  }
  const parts = few([...counts].map(([name, count]) => (count === 1 ? `1 ${name}` : `${count} × ${name}`)), "kinds");
  if (!objects.length && poses.length) parts.push(poses.length === 1 ? "1 pose" : `${poses.length} poses`);
  if (texts.length) parts.push(`text: ${few(texts.map(({ text }) => `“${short(text)}”`), "texts").join(", ")}`);
  if (motion && motion.moving_fraction >= 0.02) parts.push(`moving ${heading(motion.direction_deg)}`.trim());
  return parts.length ? parts.join(" · ") : "nothing recognised";
}

/**
 * @param {string[]} parts
 * @param {string} what
 */
function few(parts, what) {
  return parts.length > MOST + 1 ? [...parts.slice(0, MOST), `${parts.length - MOST} more ${what}`] : parts;
}

/** @param {string} words */
function short(words) {
  return words.length > LONGEST ? `${words.slice(0, LONGEST)}…` : words;
}

const HEADINGS = ["right", "down and right", "down", "down and left", "left", "up and left", "up", "up and right"];

/** @param {number | null} degrees 0 right, 90 down. */
function heading(degrees) {
  return degrees === null ? "" : HEADINGS[Math.round(degrees / 45) % 8];
}
