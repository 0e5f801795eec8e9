// From what is shown to a JPEG, in a worker; on the main thread where the browser has no OffscreenCanvas.

/** @typedef {HTMLVideoElement | HTMLCanvasElement} View */
/** @typedef {{width: number, height: number, quality: number}} Wanted Pixels, and 0 to 1. */
/** @typedef {Wanted & {id: number, picture: VideoFrame | ImageBitmap}} EncodeRequest */
/** @typedef {{id: number, bytes?: ArrayBuffer, problem?: string}} EncodeReply */

/** One picture at a time: while it is `busy`, a newer picture is on its way anyway. */
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
      else this.#pending?.reject(new Error(`the picture could not be encoded: ${data.problem}`));
    };
    this.#worker.onerror = (event) => {
      this.#worker = null; // from here on the main thread does it
      this.#pending?.reject(new Error(`the encoder's worker failed: ${event.message}`));
    };
  }

  /** `worker`, or `main thread` where it must be. */
  get where() {
    return this.#worker ? "worker" : "main thread";
  }

  /**
   * The view as it is now, as JPEG of the given size.
   * @param {View} view
   * @param {Wanted} wanted
   * @returns {Promise<Uint8Array>}
   */
  async encode(view, wanted) {
    this.busy = true;
    try {
      return new Uint8Array(await (this.#worker ? this.#inWorker(view, wanted) : this.#here(view, wanted)));
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
    const picture = await take(view);
    const id = ++this.#id;
    if (!this.#worker) {
      picture.close(); // a frame that is not closed holds up the camera
      throw new Error("the encoder's worker failed");
    }
    const worker = this.#worker;
    return new Promise((resolve, reject) => {
      this.#pending = { resolve, reject };
      worker.postMessage({ id, picture, width, height, quality }, [picture]);
    });
  }

  /**
   * @param {View} view
   * @param {Wanted} wanted
   * @returns {Promise<ArrayBuffer>}
   */
  async #here(view, { width, height, quality }) {
    Object.assign(this.#canvas, { width, height });
    this.#canvas.getContext("2d", { alpha: false })?.drawImage(view, 0, 0, width, height);
    /** @type {Blob | null} */
    const blob = await new Promise((resolve) => this.#canvas.toBlob(resolve, "image/jpeg", quality));
    if (!blob) throw new Error("the picture could not be encoded: it has no pixels");
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
 * A reference to the current frame where that is possible (no copy of pixels on this thread), else a bitmap.
 * @param {View} view
 * @returns {Promise<VideoFrame | ImageBitmap>}
 */
async function take(view) {
  if (typeof VideoFrame !== "undefined" && view instanceof HTMLVideoElement) {
    try {
      return new VideoFrame(view);
    } catch (error) {
      if (!(error instanceof DOMException)) throw error; // a video that this browser does not hand out
    }
  }
  return createImageBitmap(view);
}
