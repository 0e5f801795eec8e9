// From a source to the service: the newest picture goes out whenever there is a credit and the pace allows it.

import { fit } from "./pace.js";

/** @import { SightlineClient } from "./client.js" */
/** @import { Encoder } from "./encoder.js" */
/** @import { Pace } from "./pace.js" */
/** @import { Source } from "./source.js" */

export class Sender {
  /** Frames of the source; those sent; those that a newer one made needless before they were. */
  counts = { frames: 0, sent: 0, skipped: 0 };
  /** Of the last frame sent. */
  last = { width: 0, height: 0, bytes: 0 };
  /**
   * Called for each frame of the source.
   * @type {(now: number) => void}
   */
  onframe = () => {};
  /**
   * Called when a picture cannot be encoded.
   * @type {(problem: string) => void}
   */
  onproblem = () => {};
  #client;
  #encoder;
  #pace;
  /** @type {Map<number, number>} By seq: how long encoding took, milliseconds. */
  #encodeMs = new Map();

  /**
   * @param {SightlineClient} client
   * @param {Encoder} encoder
   * @param {Pace} pace
   */
  constructor(client, encoder, pace) {
    this.#client = client;
    this.#encoder = encoder;
    this.#pace = pace;
  }

  /** @param {Source} source */
  attach(source) {
    source.onframe = (capturedAt) => void this.#offer(source, capturedAt);
  }

  /**
   * How long the encoding of a frame took, milliseconds; told once.
   * @param {number} seq
   */
  takeEncodeMs(seq) {
    const ms = this.#encodeMs.get(seq) ?? 0;
    for (const earlier of this.#encodeMs.keys()) if (earlier <= seq) this.#encodeMs.delete(earlier);
    return ms;
  }

  reset() {
    this.counts = { frames: 0, sent: 0, skipped: 0 };
    this.#encodeMs.clear();
  }

  /**
   * @param {Source} source
   * @param {number} capturedAt
   */
  async #offer(source, capturedAt) {
    const now = performance.now();
    this.counts.frames += 1;
    this.onframe(now);
    if (this.#client.state !== "live") return;
    if (!this.#client.wantsFrame || this.#encoder.busy || !this.#pace.due(now) || !source.width) {
      this.counts.skipped += 1;
      return;
    }
    this.#pace.sent(now);
    const size = fit(source.width, source.height, this.#pace.size);
    try {
      const jpeg = await this.#encoder.encode(source.view, { ...size, quality: this.#pace.quality });
      const seq = this.#client.sendFrame(jpeg, { capturedAt });
      if (seq === null) {
        this.counts.skipped += 1;
        return;
      }
      this.#encodeMs.set(seq, performance.now() - now);
      this.counts.sent += 1;
      this.last = { ...size, bytes: jpeg.byteLength };
    } catch (error) {
      this.counts.skipped += 1;
      this.onproblem(error instanceof Error ? error.message : String(error));
    }
  }
}
