// Rates and quantiles over the last while. Pure: the caller brings the time, in milliseconds.

/** How often something happens, over a sliding window. */
export class RateMeter {
  /** @type {number[]} */
  #times = [];

  /** @param {number} windowMs */
  constructor(windowMs = 2000) {
    this.windowMs = windowMs;
    this.total = 0;
  }

  /** @param {number} now */
  tick(now) {
    this.total += 1;
    this.#times.push(now);
    if (this.#times.length > 512) this.#forget(now);
  }

  /**
   * Times a second: intervals over the time they took, so that a rate is right soon after its start.
   * @param {number} now
   */
  rate(now) {
    this.#forget(now);
    const times = this.#times;
    if (times.length < 2) return 0;
    const first = times[0];
    const last = times[times.length - 1];
    // When it has stopped, the rate falls at once and not only when the window has passed.
    const stopped = now - last > (3 * (last - first)) / (times.length - 1);
    const span = (stopped ? now : last) - first;
    return span > 0 ? ((times.length - 1) * 1000) / span : 0;
  }

  clear() {
    this.#times = [];
    this.total = 0;
  }

  /** @param {number} now */
  #forget(now) {
    const first = this.#times.findIndex((time) => now - time <= this.windowMs);
    this.#times = first < 0 ? [] : this.#times.slice(first);
  }
}

/** The last so many values, and their quantiles. */
export class Samples {
  /** @type {number[]} */
  #values = [];
  #next = 0;

  /** @param {number} size */
  constructor(size = 240) {
    this.size = size;
  }

  /** @param {number} value */
  add(value) {
    this.#values[this.#next] = value;
    this.#next = (this.#next + 1) % this.size;
  }

  /**
   * The nearest rank.
   * @param {number} q 0 to 1.
   * @returns {number | null} Null while there is no value.
   */
  quantile(q) {
    if (!this.#values.length) return null;
    const ordered = [...this.#values].sort((a, b) => a - b);
    return ordered[Math.max(0, Math.ceil(q * ordered.length) - 1)];
  }

  clear() {
    this.#values = [];
    this.#next = 0;
  }
}
