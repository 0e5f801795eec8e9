// Saves stills, recordings and results as files.

import { paint } from "./drawing.js";

/** @import { Overlay } from "./drawing.js" */
/** @import { Result } from "./protocol.js" */
/** @import { Source } from "./source.js" */

const MOST_RESULTS = 5000;
/** Formats of a recording, the preferred one first. VP8 is, because its encoder leaves the most time for drawing. */
const FORMATS = ["video/webm;codecs=vp8", "video/webm;codecs=vp9", "video/webm", "video/mp4"];
const VIDEO_BITS_PER_S = 5_000_000;
const HEAD_BYTES = 4096; // the part of a recording that holds its metadata

/** Collects the latest results and saves them as a file with one line of JSON each. */
export class Results {
  /** @type {Result[]} */
  #latest = [];

  get count() {
    return this.#latest.length;
  }

  /** @param {Result} result */
  add(result) {
    this.#latest.push(result);
    if (this.#latest.length > 1.2 * MOST_RESULTS) this.#latest = this.#latest.slice(-MOST_RESULTS);
  }

  clear() {
    this.#latest = [];
  }

  /** Saves the results that it holds. */
  save() {
    const lines = this.#latest.map((result) => `${JSON.stringify(result)}\n`);
    download(new Blob(lines, { type: "application/x-ndjson" }), "jsonl");
  }
}

/**
 * Saves the current frame with its overlay as PNG, in the size of the frame.
 * @param {Source} source
 * @param {Overlay} overlay
 */
export async function saveStill(source, overlay) {
  const canvas = compose(source, overlay);
  /** @type {Blob | null} */
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  if (blob) download(blob, "png");
}

/** Records frames and overlay as a video, at the display's rate. */
export class Recorder {
  #recorder;
  #canvas;
  #started = performance.now();
  /** @type {Blob[]} */
  #pieces = [];

  /** Whether this browser can record. */
  static get offered() {
    return typeof MediaRecorder !== "undefined" && "captureStream" in HTMLCanvasElement.prototype;
  }

  /**
   * @param {Source} source
   * @param {Overlay} overlay
   */
  constructor(source, overlay) {
    this.#canvas = compose(source, overlay);
    const mimeType = FORMATS.find((type) => MediaRecorder.isTypeSupported(type));
    this.#recorder = new MediaRecorder(this.#canvas.captureStream(), { mimeType, videoBitsPerSecond: VIDEO_BITS_PER_S });
    this.#recorder.ondataavailable = ({ data }) => this.#pieces.push(data);
    this.#recorder.start(1000);
  }

  get seconds() {
    return (performance.now() - this.#started) / 1000;
  }

  /**
   * Draws the current frame; called after each frame of the display.
   * @param {Source} source
   * @param {Overlay} overlay
   */
  draw(source, overlay) {
    compose(source, overlay, this.#canvas);
  }

  /** Ends the recording and saves it. */
  async stop() {
    const lasted = 1000 * this.seconds;
    await new Promise((resolve) => {
      this.#recorder.onstop = resolve;
      this.#recorder.stop();
    });
    const type = this.#recorder.mimeType || "video/webm";
    const recording = new Blob(this.#pieces, { type });
    const head = withDuration(new Uint8Array(await recording.slice(0, HEAD_BYTES).arrayBuffer()), lasted);
    const whole = head ? new Blob([head, recording.slice(HEAD_BYTES)], { type }) : recording;
    download(whole, type.startsWith("video/mp4") ? "mp4" : "webm");
  }
}

/**
 * Draws the current frame and its overlay on a canvas.
 * @param {Source} source
 * @param {Overlay} overlay
 * @param {HTMLCanvasElement} [canvas] Keeps its size, because the size of a video cannot change; by default a new canvas.
 */
function compose(source, overlay, canvas) {
  canvas ??= Object.assign(document.createElement("canvas"), { width: source.width & ~1, height: source.height & ~1 });
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { alpha: false }));
  const scale = Math.min(canvas.width / source.width, canvas.height / source.height);
  const [width, height] = [source.width * scale, source.height * scale];
  const [x, y] = [(canvas.width - width) / 2, (canvas.height - height) / 2];
  if (width < canvas.width - 1 || height < canvas.height - 1) context.clearRect(0, 0, canvas.width, canvas.height);
  context.drawImage(source.view, x, y, width, height);
  if (overlay.model.width) {
    paint(context, overlay.model, { x, y, scale, unit: Math.max(1, canvas.width / 800) });
  }
  return canvas;
}

/**
 * Saves a blob as a file named after the time.
 * @param {Blob} blob
 * @param {string} ending
 */
function download(blob, ending) {
  const url = URL.createObjectURL(blob);
  const name = `sightline-${new Date().toISOString().slice(0, 19).replaceAll(":", "-")}.${ending}`;
  Object.assign(document.createElement("a"), { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000); // the browser reads the data after the click
}

// --- the duration of a WebM recording ---

const SEGMENT = 0x18538067;
const INFO = 0x1549a966;
const DURATION = 0x4489;
const SCALE = 0x2ad7b1; // nanoseconds per unit of time …
const USUAL_SCALE = 1_000_000; // … and its default
const EBML = 0x1a45dfa3;

/**
 * Inserts the duration into the head of a WebM recording. Browsers record WebM without one, so that players show no length.
 * @param {Uint8Array} bytes The first bytes, including the segment's information; a few hundred suffice.
 * @param {number} ms
 * @returns {Uint8Array<ArrayBuffer> | null} Null where the recording has a duration or is not such a WebM.
 */
export function withDuration(bytes, ms) {
  const header = ebmlElement(bytes, 0);
  if (header?.id !== EBML || header.size === null) return null;
  const segment = ebmlElement(bytes, header.data + header.size);
  // A segment of known size would need a new size, too; recorders write segments of unknown size.
  if (segment?.id !== SEGMENT || segment.size !== null) return null;
  const info = find(bytes, segment.data, bytes.length, INFO);
  if (!info || info.size === null || info.data + info.size > bytes.length) return null;
  const end = info.data + info.size;
  if (find(bytes, info.data, end, DURATION)) return null;
  const scale = find(bytes, info.data, end, SCALE);
  const unit = scale?.size ? unsigned(bytes.subarray(scale.data, scale.data + scale.size)) : USUAL_SCALE;
  const added = new Uint8Array(11);
  added.set([0x44, 0x89, 0x88]);
  new DataView(added.buffer).setFloat64(3, (ms * 1e6) / unit);
  const size = new Uint8Array(8);
  new DataView(size.buffer).setBigUint64(0, BigInt(info.size + added.length) | (1n << 56n));
  const parts = [bytes.subarray(0, info.at + 4), size, bytes.subarray(info.data, end), added, bytes.subarray(end)];
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

/**
 * The first element with this id among siblings.
 * @param {Uint8Array} bytes
 * @param {number} from
 * @param {number} to
 * @param {number} id
 */
function find(bytes, from, to, id) {
  for (let at = from; at < to; ) {
    const found = ebmlElement(bytes, at);
    if (!found || found.id === id) return found;
    if (found.size === null) return null;
    at = found.data + found.size;
  }
  return null;
}

/**
 * The element that begins at a position (RFC 8794).
 * @param {Uint8Array} bytes
 * @param {number} at
 * @returns {{id: number, at: number, data: number, size: number | null} | null} `size` null: unknown.
 */
function ebmlElement(bytes, at) {
  const idLength = vintLength(bytes[at]);
  const sizeLength = vintLength(bytes[at + idLength]);
  const data = at + idLength + sizeLength;
  if (!idLength || !sizeLength || data > bytes.length) return null;
  const [first, ...rest] = bytes.subarray(at + idLength, data);
  const most = 0xff >> sizeLength; // the bits after the marker of the length
  const unknown = (first & most) === most && rest.every((byte) => byte === 0xff);
  const size = unknown ? null : unsigned(Uint8Array.of(first & most, ...rest));
  return { id: unsigned(bytes.subarray(at, at + idLength)), at, data, size };
}

/**
 * The length of a number of variable length, bytes; 0 where there is none.
 * @param {number} first Its first byte.
 */
function vintLength(first) {
  return first ? Math.clz32(first) - 23 : 0;
}

/** @param {Uint8Array} bytes Big-endian. */
function unsigned(bytes) {
  return bytes.reduce((sum, byte) => sum * 256 + byte, 0);
}
