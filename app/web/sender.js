// From a source to the service: the newest picture goes out whenever there is a credit and the pace allows it.

/** @import { SightlineClient } from "./client.js" */
/** @import { Encoder } from "./encoder.js" */
/** @import { Pace } from "./pace.js" */
/** @import { Source } from "./source.js" */

/**
 * Why a frame was not sent; the next one is newer.
 * @typedef {"hidden" | "not connected" | "no credit" | "encoder busy" | "pace" | "source changed" | "not encoded"} Skip
 */

export class Sender {
  /**
   * Frames of the source, those sent, and those that were not, by reason.
   * @type {{frames: number, sent: number, skipped: Partial<Record<Skip, number>>}}
   */
  counts = { frames: 0, sent: 0, skipped: {} };
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
  /** @type {Source | null} */
  #source = null;
  /** Pictures from before a cut are not of what is shown after it. */
  #cuts = 0;
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

  /** @param {Source | null} source The only one whose frames are sent from now on. */
  attach(source) {
    this.#source = source;
    if (source) source.onframe = (capturedAt) => void this.#offer(source, capturedAt);
  }

  /** What is shown from now on is another picture: one that is being encoded is not sent any more. */
  cut() {
    this.#cuts += 1;
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
    this.counts = { frames: 0, sent: 0, skipped: {} };
    this.#encodeMs.clear();
  }

  /**
   * @param {Source} source
   * @param {number} capturedAt
   */
  async #offer(source, capturedAt) {
    if (source !== this.#source) return;
    const now = performance.now();
    this.counts.frames += 1;
    this.onframe(now);
    const reason = this.#reason(now);
    if (reason) return this.#skip(reason);
    this.#pace.sent(now);
    const cuts = this.#cuts;
    const size = this.#pace.fit(source.width, source.height);
    try {
      const jpeg = await this.#encoder.encode(source.view, { ...size, quality: this.#pace.quality });
      if (source !== this.#source || cuts !== this.#cuts) return this.#skip("source changed");
      const seq = this.#client.sendFrame(jpeg, { capturedAt });
      if (seq === null) return this.#skip(this.#unwanted() ?? "no credit");
      this.#encodeMs.set(seq, performance.now() - now);
      this.counts.sent += 1;
      this.last = { ...size, bytes: jpeg.byteLength };
    } catch (error) {
      this.#skip("not encoded");
      if (source === this.#source) this.onproblem(error instanceof Error ? error.message : String(error));
    }
  }

  /**
   * @param {number} now
   * @returns {Skip | null} Null: it is sent.
   */
  #reason(now) {
    const unwanted = this.#unwanted();
    if (unwanted) return unwanted;
    if (this.#encoder.busy) return "encoder busy";
    return this.#pace.due(now) ? null : "pace";
  }

  /** @returns {Skip | null} */
  #unwanted() {
    if (this.#client.paused) return "hidden";
    if (this.#client.state !== "live" && this.#client.state !== "stalled") return "not connected";
    return this.#client.wantsFrame ? null : "no credit";
  }

  /** @param {Skip} reason */
  #skip(reason) {
    this.counts.skipped[reason] = (this.counts.skipped[reason] ?? 0) + 1;
  }
}
