// A point in as many dimensions as needed that is seen now and then, and shown at any time in between. Pure.

const BASE_MS = 300; // velocity comes from this much of the past: neighbouring results would tell their noise
export const AHEAD_MS = 300; // so long is a thing taken to go on as it went, then it stands still: beyond, guesses are worse
const BLEND_MS = 90; // within which a correction is worked in, so that nothing jumps
const JUMP = 0.2; // of the picture: farther than that it is another thing, and is shown where it is at once

/**
 * Values are shares of the picture, times milliseconds. Shown is the last seen value, moved on by its
 * velocity since it was captured, plus what is left of the last correction.
 */
export class Glide {
  /** @type {{at: number, values: Float64Array}[]} */
  #seen = [];
  #velocity;
  #offset;
  #correctedAt = 0;

  /**
   * @param {ArrayLike<number>} values
   * @param {number} capturedAt
   */
  constructor(values, capturedAt) {
    this.#seen.push({ at: capturedAt, values: Float64Array.from(values) });
    this.#velocity = new Float64Array(values.length);
    this.#offset = new Float64Array(values.length);
  }

  /** When the frame was taken that showed it last. */
  get seenAt() {
    return this.#seen[this.#seen.length - 1].at;
  }

  /**
   * @param {ArrayLike<number>} values
   * @param {number} capturedAt When the frame was taken that shows them.
   * @param {number} now
   */
  observe(values, capturedAt, now) {
    const shown = this.at(now);
    const seen = this.#seen;
    if (capturedAt <= seen[seen.length - 1].at) return;
    seen.push({ at: capturedAt, values: Float64Array.from(values) });
    while (seen.length > 2 && capturedAt - seen[1].at >= BASE_MS / 2 && capturedAt - seen[0].at > BASE_MS) seen.shift();
    const first = seen[0];
    for (let i = 0; i < values.length; i += 1) {
      const jumped = Math.abs(values[i] - shown[i]) > JUMP;
      this.#velocity[i] = jumped ? 0 : (values[i] - first.values[i]) / (capturedAt - first.at);
      this.#offset[i] = 0;
    }
    this.#correctedAt = now;
    const predicted = this.at(now);
    for (let i = 0; i < values.length; i += 1) {
      const offset = shown[i] - predicted[i];
      this.#offset[i] = Math.abs(offset) > JUMP ? 0 : offset;
    }
  }

  /**
   * Where it is shown at a time.
   * @param {number} now
   * @returns {Float64Array}
   */
  at(now) {
    const { at, values } = this.#seen[this.#seen.length - 1];
    const ahead = aheadOf(at, now);
    const left = unblended(this.#correctedAt, now);
    return values.map((value, i) => value + this.#velocity[i] * ahead + this.#offset[i] * left);
  }
}

/**
 * For how long what was seen is taken to have gone on, milliseconds.
 * @param {number} capturedAt
 * @param {number} now
 */
export function aheadOf(capturedAt, now) {
  return Math.min(AHEAD_MS, Math.max(0, now - capturedAt));
}

/**
 * The share of a correction that is still to be worked in.
 * @param {number} correctedAt
 * @param {number} now
 */
export function unblended(correctedAt, now) {
  return Math.exp(-Math.max(0, now - correctedAt) / BLEND_MS);
}
