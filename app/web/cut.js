// Where one picture ends and another begins: what was seen in the one is not drawn on the other. Pure.

/** @import { Result } from "./protocol.js" */

export class Cut {
  #lastSeq = 0;
  #at = -Infinity;
  /** Whether the next result's motion is from the old picture to the new one. */
  #first = false;

  /**
   * Another picture is shown from now on.
   * @param {number} lastSeq Of the frames sent so far.
   * @param {number} now
   */
  mark(lastSeq, now) {
    this.#lastSeq = lastSeq;
    this.#at = now;
    this.#first = true;
  }

  /**
   * A result, as far as it is of the picture that is shown now.
   * @param {Result} result
   * @param {number} capturedAt When its frame was taken, on `mark`'s clock.
   * @returns {Result | null} Null when nothing is.
   */
  sift(result, capturedAt) {
    if (result.seq <= this.#lastSeq) return null;
    const readAt = capturedAt - (result.stages.ocr?.age_ms ?? 0);
    const texts = readAt < this.#at ? [] : result.texts;
    const motion = this.#first ? null : result.motion;
    this.#first = false;
    return { ...result, texts, motion };
  }
}
