// Which frames are on their way, and thereby how many more may be sent. Pure.

/**
 * @typedef {object} SentFrame
 * @property {number} seq
 * @property {number} capturedAt On the clock of `performance.now()`, as is `sentAt`.
 * @property {number} sentAt
 * @property {number} bytes
 */

/** Counts credits: a result acknowledges its frame and every one before it, a refusal its frame alone. */
export class Flight {
  /** @type {Map<number, SentFrame>} */
  #frames = new Map();

  /** @param {number} credits Frames that may be in flight. */
  constructor(credits = 0) {
    this.credits = credits;
  }

  /** Frames that may be sent now. */
  get free() {
    return Math.max(0, this.credits - this.#frames.size);
  }

  /**
   * When the oldest frame that has no answer was sent; null when every one was answered.
   * @returns {number | null}
   */
  get waitingSince() {
    for (const { sentAt } of this.#frames.values()) return sentAt;
    return null;
  }

  /** @param {SentFrame} frame */
  sent(frame) {
    this.#frames.set(frame.seq, frame);
  }

  /**
   * Takes a result. Frames before it were superseded: nothing else will come of them.
   * @param {number} seq
   * @returns {SentFrame | null} The frame that was answered; null for one that is not in flight.
   */
  answered(seq) {
    const frame = this.#frames.get(seq) ?? null;
    for (const earlier of this.#frames.keys()) if (earlier <= seq) this.#frames.delete(earlier);
    return frame;
  }

  /**
   * Takes an error: one on arrival comes before the answers to older frames.
   * @param {number} seq
   */
  refused(seq) {
    this.#frames.delete(seq);
  }
}
