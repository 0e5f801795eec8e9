// How much of its colour something keeps while it gets older. Pure.

const FRESH_MS = 300; // so long it is as good as now …
const FADED_MS = 1000; // … at this age the picture shows something else by now, and what was seen is a hint of it …
const TEXT_FADED_MS = 4000; // … a text is read seldom and follows the camera meanwhile: later
const LEAST = 0.35; // a hint that can still be made out

/**
 * @param {number} ageMs Of the frame that shows it.
 * @returns {number} 1 for what is fresh, never less than `LEAST`: what is gone is another matter.
 */
export function freshness(ageMs) {
  return fade(ageMs, FADED_MS);
}

/**
 * @param {number} ageMs Of the frame that shows the camera's latest known place.
 * @param {number} readMs Of the frame in which it was read.
 */
export function textFreshness(ageMs, readMs) {
  return Math.min(freshness(ageMs), fade(readMs, TEXT_FADED_MS));
}

/**
 * @param {number} ageMs
 * @param {number} fadedMs
 */
function fade(ageMs, fadedMs) {
  const gone = Math.min(1, Math.max(0, (ageMs - FRESH_MS) / (fadedMs - FRESH_MS)));
  return 1 - (1 - LEAST) * gone;
}
