// What the page's address asks for, as in `?confidence=0.5&classes=person,dog`; and what it asks for in vain. Pure.

/** @import { Settings } from "./protocol.js" */

/** @type {Record<string, {wants: string, read: (text: string) => Settings | null}>} */
const KNOWN = {
  confidence: { wants: "a number from 0 to 1, as in confidence=0.5", read: (text) => share("confidence", text) },
  iou: { wants: "a number from 0 to 1, as in iou=0.7", read: (text) => share("iou", text) },
  classes: { wants: "names or numbers of classes, as in classes=person,dog", read: readClasses },
};
const MOST_SHOWN = 40;
const NEAR = 3; // letters that are other ones, too many or too few: more than that is another word

/**
 * @param {string} search `location.search`.
 * @returns {{settings: Settings, problems: string[]}} In words for who wrote it; what is right takes effect all the same.
 */
export function readQuery(search) {
  /** @type {Settings} */
  let settings = {};
  /** @type {string[]} */
  const problems = [];
  for (const [name, text] of new URLSearchParams(search)) {
    const known = Object.hasOwn(KNOWN, name) ? KNOWN[name] : null;
    const read = known?.read(text.trim());
    if (read) settings = { ...settings, ...read };
    else if (known) problems.push(`“${name}” wants ${known.wants}, not “${cut(text)}”.`);
    else problems.push(unknown(name));
  }
  return { settings, problems };
}

/** @param {string} name */
function unknown(name) {
  const names = Object.keys(KNOWN);
  const near = names.find((other) => alike(name.toLowerCase(), other));
  const instead = near ? `Is “${near}” meant?` : `It takes ${names.slice(0, -1).join(", ")} and ${names.at(-1)}.`;
  return `The page’s address has “${cut(name)}”, which means nothing here. ${instead}`;
}

/**
 * Whether one was probably meant for the other: its beginning, or a few letters off.
 * @param {string} written
 * @param {string} right
 */
function alike(written, right) {
  if (written.length > 1 && (right.startsWith(written) || written.startsWith(right))) return true;
  return written.length > 2 && distance(written, right) <= Math.min(NEAR, right.length / 2);
}

/**
 * Levenshtein's.
 * @param {string} a
 * @param {string} b
 */
function distance(a, b) {
  let before = Array.from({ length: b.length + 1 }, (_, at) => at);
  for (let i = 1; i <= Math.min(a.length, MOST_SHOWN); i += 1) {
    const row = [i];
    for (let j = 1; j <= b.length; j += 1) {
      row.push(Math.min(row[j - 1] + 1, before[j] + 1, before[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1)));
    }
    before = row;
  }
  return before[b.length];
}

/**
 * @param {"confidence" | "iou"} name
 * @param {string} text
 * @returns {Settings | null}
 */
function share(name, text) {
  const value = Number(text);
  return text && value >= 0 && value <= 1 ? { [name]: value } : null;
}

/**
 * @param {string} text
 * @returns {Settings | null}
 */
function readClasses(text) {
  const names = text.split(",").map((name) => name.trim());
  if (!names.every(Boolean)) return null;
  return { classes: names.map((name) => (/^\d{1,9}$/.test(name) ? Number(name) : name)) };
}

/** @param {string} text */
function cut(text) {
  return text.length > MOST_SHOWN ? `${text.slice(0, MOST_SHOWN)}…` : text;
}
