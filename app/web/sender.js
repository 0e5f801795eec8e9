// Sends frames of a source to the service: the sender, the encoder and the rate control.

/** @import { SightlineClient } from "./client.js" */
/** @import { Source } from "./source.js" */

/**
 * Why the sender skipped a frame.
 * @typedef {"hidden" | "not connected" | "no credit" | "encoder busy" | "rate limit" | "source changed" | "not encoded"} Skip
 */

/** Sends the newest frame of the source whenever there is a credit and the rate control allows it. */
export class Sender {
  /**
   * Number of frames that the source showed, of those sent, and of those skipped by reason.
   * @type {{frames: number, sent: number, skipped: Partial<Record<Skip, number>>}}
   */
  counts = { frames: 0, sent: 0, skipped: {} };
  /** Size of the last frame sent, in pixels and bytes. */
  last = { width: 0, height: 0, bytes: 0 };
  /**
   * Called for each frame of the source with the time.
   * @type {(now: number) => void}
   */
  onframe = () => {};
  /**
   * Called when a frame cannot be encoded.
   * @type {(problem: string) => void}
   */
  onproblem = () => {};
  #client;
  #encoder;
  #rateControl;
  /** @type {Source | null} */
  #source = null;
  /** Counts the calls of `discardPending`, so that `#offer` recognises a frame whose encoding began before the last one. */
  #discards = 0;
  /** @type {Map<number, number>} How long encoding took, milliseconds, by `seq`. */
  #encodeMs = new Map();

  /**
   * @param {SightlineClient} client
   * @param {Encoder} encoder
   * @param {RateControl} rateControl
   */
  constructor(client, encoder, rateControl) {
    this.#client = client;
    this.#encoder = encoder;
    this.#rateControl = rateControl;
  }

  /** @param {Source | null} source From now on the sender sends this source's frames alone. */
  attach(source) {
    this.#source = source;
    if (source) source.onframe = (capturedAt) => void this.#offer(source, capturedAt);
  }

  /** Discards the frame that is being encoded, because the page now shows something else. */
  discardPending() {
    this.#discards += 1;
  }

  /**
   * How long the encoding of a frame took, milliseconds. Forgets it and those of earlier frames, so that a second call returns 0.
   * @param {number} seq
   */
  takeEncodeMs(seq) {
    const ms = this.#encodeMs.get(seq) ?? 0;
    for (const earlier of this.#encodeMs.keys()) if (earlier <= seq) this.#encodeMs.delete(earlier);
    return ms;
  }

  /** Resets the counts, because a new session begins. */
  reset() {
    this.counts = { frames: 0, sent: 0, skipped: {} };
    this.#encodeMs.clear();
  }

  /**
   * Sends a frame of the source or counts why not.
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
    this.#rateControl.sent(now);
    const discards = this.#discards;
    const size = this.#rateControl.fit(source.width, source.height);
    try {
      const jpeg = await this.#encoder.encode(source.view, { ...size, quality: this.#rateControl.quality });
      if (source !== this.#source || discards !== this.#discards) return this.#skip("source changed");
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
   * Why the sender skips a frame.
   * @param {number} now
   * @returns {Skip | null} Null: the frame is to be sent.
   */
  #reason(now) {
    const unwanted = this.#unwanted();
    if (unwanted) return unwanted;
    if (this.#encoder.busy) return "encoder busy";
    return this.#rateControl.due(now) ? null : "rate limit";
  }

  /**
   * Why the client wants no frame.
   * @returns {Skip | null} Null: it wants one.
   */
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

// --- encoder ---

/** @typedef {HTMLVideoElement | HTMLCanvasElement} View */
/** @typedef {{width: number, height: number, quality: number}} Wanted Size in pixels; quality from 0 to 1. */
/** @typedef {Wanted & {id: number, frame: VideoFrame | ImageBitmap}} EncodeRequest */
/** @typedef {{id: number, bytes?: ArrayBuffer, problem?: string}} EncodeReply */

/**
 * Encodes what the page shows as JPEG: in a worker, or on the main thread where the browser has no OffscreenCanvas. It
 * encodes one frame at a time; the sender skips a frame while `busy`, because a newer one follows.
 */
export class Encoder {
  busy = false;
  #worker = startWorker();
  #canvas = document.createElement("canvas");
  #id = 0;
  /** @type {{resolve: (bytes: ArrayBuffer) => void, reject: (error: Error) => void} | null} */
  #pending = null;

  constructor() {
    if (!this.#worker) return;
    this.#worker.onmessage = (/** @type {MessageEvent<EncodeReply>} */ { data }) => {
      if (data.id !== this.#id) return;
      if (data.bytes) this.#pending?.resolve(data.bytes);
      else this.#pending?.reject(new Error(`the frame could not be encoded: ${data.problem}`));
    };
    this.#worker.onerror = (event) => {
      this.#worker = null; // from now on the main thread encodes
      this.#pending?.reject(new Error(`the encoder's worker failed: ${event.message}`));
    };
  }

  /** `worker`, or `main thread` where there is no worker. */
  get where() {
    return this.#worker ? "worker" : "main thread";
  }

  /**
   * Encodes the view as it is now as JPEG of the given size.
   * @param {View} view
   * @param {Wanted} wanted
   * @returns {Promise<Uint8Array>}
   */
  async encode(view, wanted) {
    this.busy = true;
    try {
      return new Uint8Array(await (this.#worker ? this.#inWorker(view, wanted) : this.#onMainThread(view, wanted)));
    } finally {
      this.busy = false;
      this.#pending = null;
    }
  }

  /**
   * @param {View} view
   * @param {Wanted} wanted
   * @returns {Promise<ArrayBuffer>}
   */
  async #inWorker(view, { width, height, quality }) {
    const frame = await grab(view);
    const id = ++this.#id;
    if (!this.#worker) {
      frame.close(); // a camera stops delivering while its frames stay open
      throw new Error("the encoder's worker failed");
    }
    const worker = this.#worker;
    return new Promise((resolve, reject) => {
      this.#pending = { resolve, reject };
      worker.postMessage({ id, frame, width, height, quality }, [frame]);
    });
  }

  /**
   * @param {View} view
   * @param {Wanted} wanted
   * @returns {Promise<ArrayBuffer>}
   */
  async #onMainThread(view, { width, height, quality }) {
    Object.assign(this.#canvas, { width, height });
    this.#canvas.getContext("2d", { alpha: false })?.drawImage(view, 0, 0, width, height);
    /** @type {Blob | null} */
    const blob = await new Promise((resolve) => this.#canvas.toBlob(resolve, "image/jpeg", quality));
    if (!blob) throw new Error("the frame could not be encoded: it has no pixels");
    return blob.arrayBuffer();
  }
}

/** @returns {Worker | null} */
function startWorker() {
  if (typeof Worker === "undefined" || typeof OffscreenCanvas === "undefined") return null;
  if (!("convertToBlob" in OffscreenCanvas.prototype)) return null;
  return new Worker(new URL("encoder.worker.js", import.meta.url), { type: "module" });
}

/**
 * A reference to the current frame where the browser offers one, because that copies no pixels on this thread; else a bitmap.
 * @param {View} view
 * @returns {Promise<VideoFrame | ImageBitmap>}
 */
async function grab(view) {
  if (typeof VideoFrame !== "undefined" && view instanceof HTMLVideoElement) {
    try {
      return new VideoFrame(view);
    } catch (error) {
      if (!(error instanceof DOMException)) throw error; // the browser does not hand out frames of this video
    }
  }
  return createImageBitmap(view);
}

// --- rate control ---

/**
 * @typedef {object} SendOptions A number is set by hand; null means automatic.
 * @property {number | null} [quality] JPEG quality, 0 to 1.
 * @property {number | null} [size] Longer side, pixels. The automatic choice is of the area instead.
 * @property {number | null} [rate] Frames a second.
 */
/**
 * @typedef {object} Answered
 * @property {number} now
 * @property {number} roundTripMs From sending to the answer.
 * @property {number} serverMs The part of it that the frame spent at the service.
 * @property {number} waitedMs The part of that in which it waited for earlier frames of the session.
 * @property {number} encodeMs
 * @property {number} dropped Number of frames that the service dropped since its last answer.
 */

/** Longer sides of a 4:3 frame, pixels. A frame of another shape has the same area. */
export const SIZES = [320, 416, 512, 640];
const LEAST_SIDE = 160; // pixels: with fewer, a long strip shows nothing recognisable …
const LONGEST_SIDE = 4096; // … but this limit comes first: with it a strip has twice the pixels of 640 x 480
const QUALITY = { least: 0.5, most: 0.8 };
const RATE = { least: 1, most: 30 };
const SMOOTH = 0.3;
const WAITED = 0.3; // a frame counts as having waited after this share of the time the service needs for it …
const WAITED_MS = 4; // … plus this
const MANY = 0.5; // the rate falls when this share of the latest frames waited
const SLOW_NETWORK_MS = 120;
const FAST_NETWORK_MS = 60;
const SLOW_ENCODER_MS = 40;
const SIZE_HOLD_MS = 5000; // a new size interrupts motion and tracks, so that changes are rare

/**
 * Decides how large, how good and how frequent the frames are. It has no clock: the caller passes times and measurements.
 *
 * Additive increase, multiplicative decrease. The rate follows the service: when frames wait there for earlier ones, a lower
 * rate makes every result fresher and none rarer. Quality and size follow the network and the encoder. What the user sets
 * by hand does not change.
 */
export class RateControl {
  /** @type {SendOptions} */
  #byHand = {};
  #quality = QUALITY.most;
  #size = SIZES.length - 1;
  #rate = RATE.most;
  #nextAt = 0;
  #waiting = 0;
  #networkMs = 0;
  #encodeMs = 0;
  #answeredAt = 0;
  #intervalMs = 0;
  #fellAt = 0;
  #qualityAt = 0;
  #sizeAt = 0;

  /**
   * Sets options by hand, or back to automatic.
   * @param {SendOptions} options The others stay as they are.
   */
  set(options) {
    this.#byHand = { ...this.#byHand, ...options };
  }

  get quality() {
    return this.#byHand.quality ?? this.#quality;
  }

  /** Longer side of the frames to send, pixels; when automatic, that of a 4:3 frame. */
  get size() {
    return this.#byHand.size ?? SIZES[this.#size];
  }

  /**
   * The size in which a frame is sent.
   * @param {number} width
   * @param {number} height
   */
  fit(width, height) {
    return this.#byHand.size ? fit(width, height, this.#byHand.size) : fitArea(width, height, this.size ** 2 * 0.75);
  }

  /** The highest number of frames a second. */
  get rate() {
    return this.#byHand.rate ?? this.#rate;
  }

  /**
   * Whether the next frame may be sent.
   * @param {number} now
   */
  due(now) {
    return now >= this.#nextAt - 4; // a camera of 30 frames a second is sometimes a little early
  }

  /**
   * Takes note of a frame sent.
   * @param {number} now
   */
  sent(now) {
    const interval = 1000 / this.rate;
    this.#nextAt = Math.max(this.#nextAt, now - interval) + interval;
  }

  /**
   * Adapts to the measurements of an answered frame.
   * @param {Answered} answer
   */
  answered(answer) {
    this.#networkMs = blend(this.#networkMs, Math.max(0, answer.roundTripMs - answer.serverMs));
    this.#encodeMs = blend(this.#encodeMs, answer.encodeMs);
    this.#adaptRate(answer);
    this.#adaptFrame(answer.now);
    this.#answeredAt = answer.now;
  }

  /** Starts again at the highest rate, because a new session begins. Quality and size stay. */
  reset() {
    this.#rate = RATE.most;
    this.#networkMs = this.#waiting = this.#intervalMs = this.#answeredAt = this.#nextAt = this.#fellAt = 0;
  }

  /**
   * Counts how many frames waited, not for how long, because a single delayed frame says nothing about the rate.
   * @param {Answered} answer
   */
  #adaptRate({ now, dropped, serverMs, waitedMs }) {
    const elapsed = this.#answeredAt ? Math.min(now - this.#answeredAt, 5000) : 0;
    if (elapsed) this.#intervalMs = this.#intervalMs ? blend(this.#intervalMs, elapsed, 0.1) : elapsed;
    const waited = dropped > 0 || waitedMs > WAITED * (serverMs - waitedMs) + WAITED_MS;
    this.#waiting = blend(this.#waiting, waited ? 1 : 0);
    if (this.#waiting > MANY) {
      if (now - this.#fellAt < 3 * this.#intervalMs) return; // the answers so far are to frames sent before the rate fell
      this.#fellAt = now;
      this.#waiting = 0;
      const achieved = this.#intervalMs ? 1000 / this.#intervalMs : this.#rate;
      this.#rate = Math.max(RATE.least, 0.9 * Math.min(this.#rate, achieved));
    } else {
      this.#rate = Math.min(RATE.most, this.#rate + Math.max(1, 0.15 * this.#rate) * Math.min(1, elapsed / 1000));
    }
  }

  /**
   * Adapts quality and size.
   * @param {number} now
   */
  #adaptFrame(now) {
    if (now - this.#qualityAt < 1000) return;
    this.#qualityAt = now;
    const slow = this.#networkMs > SLOW_NETWORK_MS;
    if (slow && this.#quality > QUALITY.least) this.#quality = Math.max(QUALITY.least, this.#quality * 0.9);
    else if (slow || this.#encodeMs > SLOW_ENCODER_MS) this.#resize(now, -1);
    else if (this.#networkMs < FAST_NETWORK_MS) {
      if (this.#quality < QUALITY.most) this.#quality = Math.min(QUALITY.most, this.#quality + 0.02);
      else if (this.#encodeMs < SLOW_ENCODER_MS / 2) this.#resize(now, 1);
    }
  }

  /**
   * Changes the size, unless it changed a moment ago.
   * @param {number} now
   * @param {number} step Of `SIZES`.
   */
  #resize(now, step) {
    const size = Math.min(SIZES.length - 1, Math.max(0, this.#size + step));
    if (size === this.#size || now - this.#sizeAt < SIZE_HOLD_MS) return;
    this.#size = size;
    this.#sizeAt = now;
  }
}

/**
 * Exponential smoothing.
 * @param {number} before
 * @param {number} now
 * @param {number} [share] Weight of the latest value.
 */
function blend(before, now, share = SMOOTH) {
  return before + share * (now - before);
}

/**
 * The size of a frame scaled down so that its longer side is at most `longest`.
 * @param {number} width
 * @param {number} height
 * @param {number} longest
 */
export function fit(width, height, longest) {
  const scale = Math.min(1, longest / Math.max(width, height, 1));
  return { width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale)) };
}

/**
 * The size of a frame scaled down to an area. Its shorter side keeps at least `LEAST_SIDE` as far as the longer one allows,
 * so that a long strip stays recognisable.
 * @param {number} width
 * @param {number} height
 * @param {number} pixels
 */
export function fitArea(width, height, pixels) {
  const [longer, shorter] = [Math.max(width, height, 1), Math.max(1, Math.min(width, height))];
  const scale = Math.max(Math.sqrt(pixels / (longer * shorter)), LEAST_SIDE / shorter);
  return fit(width, height, Math.min(LONGEST_SIDE, Math.round(longer * scale)));
}
