// The built-in sample: a photograph, slowly panned and zoomed, and a printed sign that moves over it. It is drawn
// here, so that no codec and no camera is needed to see the main job.

/** @import { Source } from "./source.js" */

const WIDTH = 640;
const HEIGHT = 480;
const FRAMES_PER_S = 30;
const SIGN = { words: "GATE 7 EXIT", width: 250, height: 60, y: 404 };
const SIGN_PLACES = [14, 376];
const SIGN_REST_MS = 6000;
const SIGN_MOVE_MS = 1500;

/** @implements {Source} */
export class SampleSource {
  /** @type {"sample"} */
  kind = "sample";
  label = "sample";
  width = WIDTH;
  height = HEIGHT;
  /** @type {(capturedAt: number) => void} */
  onframe = () => {};
  onend = () => {};
  view = Object.assign(document.createElement("canvas"), { width: WIDTH, height: HEIGHT });
  #picture;
  #pen = /** @type {CanvasRenderingContext2D} */ (this.view.getContext("2d", { alpha: false }));
  #started = performance.now();
  #drawnAt = -Infinity;
  #request = 0;

  /** @param {ImageBitmap} picture */
  constructor(picture) {
    this.#picture = picture;
    this.#paint(0);
    this.#next();
  }

  stop() {
    cancelAnimationFrame(this.#request);
    this.#picture.close();
  }

  #next() {
    this.#request = requestAnimationFrame((now) => {
      this.#next();
      if (now - this.#drawnAt < 1000 / FRAMES_PER_S - 2) return;
      this.#drawnAt = now;
      this.#paint(Math.max(0, now - this.#started));
      this.onframe(now);
    });
  }

  /** @param {number} ms Since the start. */
  #paint(ms) {
    const pen = this.#pen;
    const { x, y, width, height } = viewAt(ms, this.#picture.width, this.#picture.height);
    pen.drawImage(this.#picture, x, y, width, height, 0, 0, WIDTH, HEIGHT);
    const left = signAt(ms);
    pen.fillStyle = "#f7f7f2";
    pen.fillRect(left, SIGN.y, SIGN.width, SIGN.height);
    pen.lineWidth = 3;
    pen.strokeStyle = "#15171a";
    pen.strokeRect(left + 1.5, SIGN.y + 1.5, SIGN.width - 3, SIGN.height - 3);
    pen.fillStyle = "#15171a";
    pen.font = "700 34px Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif";
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.fillText(SIGN.words, left + SIGN.width / 2, SIGN.y + SIGN.height / 2 + 2, SIGN.width - 20);
  }
}

/** @param {string} url Of the photograph. */
export async function openSample(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`the sample's picture answered ${response.status}`);
  return new SampleSource(await createImageBitmap(await response.blob()));
}

/**
 * The part of the photograph that is shown: it breathes between all of it and 85%, and wanders.
 * @param {number} ms
 * @param {number} width
 * @param {number} height
 */
function viewAt(ms, width, height) {
  const zoom = 0.89 - 0.04 * Math.cos(ms / 5200);
  const [w, h] = [width * zoom, height * zoom];
  return {
    x: (width - w) * (0.5 + 0.5 * Math.sin(ms / 3700)),
    y: (height - h) * (0.5 - 0.5 * Math.cos(ms / 6100)),
    width: w,
    height: h,
  };
}

/**
 * The sign rests long enough to be read, then slides over.
 * @param {number} ms
 */
function signAt(ms) {
  const turn = Math.floor(ms / SIGN_REST_MS);
  const [from, to] = turn % 2 ? SIGN_PLACES : [...SIGN_PLACES].reverse();
  const progress = turn === 0 ? 1 : Math.min(1, (ms % SIGN_REST_MS) / SIGN_MOVE_MS);
  return from + (to - from) * (0.5 - 0.5 * Math.cos(Math.PI * progress));
}
