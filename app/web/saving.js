// Keeps what was seen: a still, a film, the results.

import { paint } from "./drawing.js";
import { withDuration } from "./webm.js";

/** @import { Overlay } from "./drawing.js" */
/** @import { Result } from "./protocol.js" */
/** @import { Source } from "./source.js" */

const MOST_RESULTS = 5000;
const FILMS = ["video/webm;codecs=vp8", "video/webm;codecs=vp9", "video/webm", "video/mp4"]; // vp8 leaves time to draw
const FILM_BITS_PER_S = 5_000_000;
const BEGINNING = 4096; // bytes of a recording: what is said of it stands there

/** The latest results, for a file with one line of JSON each. */
export class Results {
  /** @type {Result[]} */
  #kept = [];

  get count() {
    return this.#kept.length;
  }

  /** @param {Result} result */
  add(result) {
    this.#kept.push(result);
    if (this.#kept.length > 1.2 * MOST_RESULTS) this.#kept = this.#kept.slice(-MOST_RESULTS);
  }

  clear() {
    this.#kept = [];
  }

  save() {
    const lines = this.#kept.map((result) => `${JSON.stringify(result)}\n`);
    download(new Blob(lines, { type: "application/x-ndjson" }), "jsonl");
  }
}

/**
 * The picture with its overlay, in the picture's own size, as PNG.
 * @param {Source} source
 * @param {Overlay} overlay
 */
export async function saveStill(source, overlay) {
  const canvas = compose(source, overlay);
  /** @type {Blob | null} */
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  if (blob) download(blob, "png");
}

/** Records picture and overlay together, at the display's rate. */
export class Recorder {
  #recorder;
  #canvas;
  #started = performance.now();
  /** @type {Blob[]} */
  #pieces = [];

  /** Whether this browser records at all. */
  static get offered() {
    return typeof MediaRecorder !== "undefined" && "captureStream" in HTMLCanvasElement.prototype;
  }

  /**
   * @param {Source} source
   * @param {Overlay} overlay
   */
  constructor(source, overlay) {
    this.#canvas = compose(source, overlay);
    const mimeType = FILMS.find((type) => MediaRecorder.isTypeSupported(type));
    this.#recorder = new MediaRecorder(this.#canvas.captureStream(), { mimeType, videoBitsPerSecond: FILM_BITS_PER_S });
    this.#recorder.ondataavailable = ({ data }) => this.#pieces.push(data);
    this.#recorder.start(1000);
  }

  get seconds() {
    return (performance.now() - this.#started) / 1000;
  }

  /**
   * After each drawn frame.
   * @param {Source} source
   * @param {Overlay} overlay
   */
  draw(source, overlay) {
    compose(source, overlay, this.#canvas);
  }

  /** Ends it and saves the film. */
  async stop() {
    const lasted = 1000 * this.seconds;
    await new Promise((resolve) => {
      this.#recorder.onstop = resolve;
      this.#recorder.stop();
    });
    const type = this.#recorder.mimeType || "video/webm";
    const film = new Blob(this.#pieces, { type });
    const begins = withDuration(new Uint8Array(await film.slice(0, BEGINNING).arrayBuffer()), lasted);
    const whole = begins ? new Blob([begins, film.slice(BEGINNING)], { type }) : film;
    download(whole, type.startsWith("video/mp4") ? "mp4" : "webm");
  }
}

/**
 * @param {Source} source
 * @param {Overlay} overlay
 * @param {HTMLCanvasElement} [canvas] One that keeps its size: a film's cannot change.
 */
function compose(source, overlay, canvas) {
  canvas ??= Object.assign(document.createElement("canvas"), { width: source.width & ~1, height: source.height & ~1 });
  const pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { alpha: false }));
  const scale = Math.min(canvas.width / source.width, canvas.height / source.height);
  const [width, height] = [source.width * scale, source.height * scale];
  const [x, y] = [(canvas.width - width) / 2, (canvas.height - height) / 2];
  if (width < canvas.width - 1 || height < canvas.height - 1) pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(source.view, x, y, width, height);
  if (overlay.model.width) {
    paint(pen, overlay.model, { x, y, scale, unit: Math.max(1, canvas.width / 800) }, overlay.skeleton);
  }
  return canvas;
}

/**
 * @param {Blob} blob
 * @param {string} ending
 */
function download(blob, ending) {
  const url = URL.createObjectURL(blob);
  const name = `sightline-${new Date().toISOString().slice(0, 19).replaceAll(":", "-")}.${ending}`;
  Object.assign(document.createElement("a"), { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000); // the browser reads it after the click
}
