// What this browser remembers for the page. Where it may not, nothing is remembered and nothing breaks.

/** @typedef {"tab" | "browser"} Span */

/**
 * @param {Span} span How long: until the tab is closed, or for good.
 * @param {string} key
 * @returns {string | null}
 */
export function recall(span, key) {
  try {
    return storage(span).getItem(key);
  } catch {
    return null; // storage is switched off
  }
}

/**
 * @param {Span} span
 * @param {string} key
 * @param {string} value Empty forgets it.
 */
export function remember(span, key, value) {
  try {
    if (value) storage(span).setItem(key, value);
    else storage(span).removeItem(key);
  } catch {
    // storage is switched off or full: it is asked for again next time
  }
}

/** @param {Span} span */
function storage(span) {
  return span === "tab" ? sessionStorage : localStorage;
}
