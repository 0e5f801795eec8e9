// The layer over the picture: drawn at the display's rate, whatever the service's.

import { paint } from "./paint.js";

/** @import { Place } from "./paint.js" */
/** @import { Scene, Tracks } from "./tracks.js" */

const MOST_DENSITY = 2; // more canvas pixels than that cost time and show nothing

/** Draws what `tracks` shows, over a picture that is laid out with `object-fit: contain` in the same rectangle. */
export class Overlay {
  /**
   * The scene as it was drawn last, in pixels of the picture. For tests and for pages that embed this.
   * @type {Scene}
   */
  model = { width: 0, height: 0, objects: [], poses: [], texts: [], motion: null, field: null, fieldAlpha: 0 };
  /**
   * Called after each drawn frame, with its time.
   * @type {(now: number) => void}
   */
  ondraw = () => {};
  /**
   * The picture's size; a source that is not there yet has none.
   * @type {() => {width: number, height: number}}
   */
  size = () => ({ width: 0, height: 0 });
  /**
   * Pairs of keypoints.
   * @type {[number, number][]}
   */
  skeleton = [];
  #canvas;
  #tracks;
  #pen;
  #density = 1;
  #request = 0;
  #blank = true;

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {Tracks} tracks
   */
  constructor(canvas, tracks) {
    this.#canvas = canvas;
    this.#tracks = tracks;
    this.#pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    new ResizeObserver(([entry]) => this.#resize(entry.contentRect)).observe(canvas);
  }

  start() {
    if (!this.#request) this.#request = requestAnimationFrame((now) => this.#draw(now));
  }

  stop() {
    cancelAnimationFrame(this.#request);
    this.#request = 0;
    this.#tracks.clear();
    this.#show(performance.now());
  }

  /**
   * Where the picture lies on the canvas.
   * @returns {Place}
   */
  get place() {
    const { width, height } = this.model;
    const scale = width && height ? Math.min(this.#canvas.width / width, this.#canvas.height / height) : 0;
    return {
      x: (this.#canvas.width - width * scale) / 2,
      y: (this.#canvas.height - height * scale) / 2,
      scale,
      unit: this.#density,
    };
  }

  /** @param {number} now */
  #draw(now) {
    this.#request = requestAnimationFrame((next) => this.#draw(next));
    // `now` is when the display's frame began: results that came since are a little ahead of it.
    this.#show(Math.max(now, performance.now()));
    this.ondraw(now);
  }

  /** @param {number} now */
  #show(now) {
    this.model = this.#tracks.at(now, this.size());
    const { objects, poses, texts, field } = this.model;
    const blank = !objects.length && !poses.length && !texts.length && !field;
    if (!blank || !this.#blank) this.#pen.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
    if (!blank) paint(this.#pen, this.model, this.place, this.skeleton);
    this.#blank = blank;
  }

  /** @param {DOMRectReadOnly} rectangle */
  #resize({ width, height }) {
    this.#density = Math.min(MOST_DENSITY, devicePixelRatio || 1);
    this.#canvas.width = Math.round(width * this.#density);
    this.#canvas.height = Math.round(height * this.#density);
    this.#blank = true;
    this.#show(performance.now());
  }
}
