// The browser's storage. Where the browser refuses it, the page works without.

/** @typedef {"tab" | "browser"} Span Until the tab is closed, or for good. */

/**
 * @param {Span} span
 * @param {string} key
 * @returns {string | null} Null where nothing is stored.
 */
export function load(span, key) {
  try {
    return storage(span).getItem(key);
  } catch {
    return null; // storage is switched off
  }
}

/**
 * @param {Span} span
 * @param {string} key
 * @param {string} value Empty removes the key.
 */
export function store(span, key, value) {
  try {
    if (value) storage(span).setItem(key, value);
    else storage(span).removeItem(key);
  } catch {
    // storage is switched off or full, so that the page asks again next time
  }
}

/** @param {Span} span */
function storage(span) {
  return span === "tab" ? sessionStorage : localStorage;
}
