// The age of the latest results, a bar each, with the share of every stage stacked in it.

/** @import { Result } from "./protocol.js" */

/**
 * Shares of a result's age in the order of a frame's way, milliseconds.
 * @typedef {Record<string, number>} Shares
 */

export const PARTS = [
  { name: "encode", title: "encode", colour: "#8b9cf7" },
  { name: "network", title: "network", colour: "#4dc3ff" },
  { name: "wait", title: "waiting", colour: "#ff8f6b" },
  { name: "prepare", title: "decode", colour: "#f5c542" },
  { name: "infer", title: "models", colour: "#3ddc84" },
  { name: "rest", title: "other", colour: "#98a2b0" },
];
const BARS = 90;
const GRID_MS = [10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000];

/**
 * Where a result's time went, from capture to its arrival.
 * @param {Result} result
 * @param {number} ageMs From capture to arrival, on this machine's clock.
 * @param {number} roundTripMs
 * @returns {Shares}
 */
export function sharesOf({ age_ms, timings_ms }, ageMs, roundTripMs) {
  const { queue = 0, gate = 0, decode = 0, prepare = 0, motion = 0, infer = 0 } = timings_ms;
  const wait = queue + gate;
  const prepared = decode + prepare + motion;
  return {
    encode: Math.max(0, ageMs - roundTripMs),
    network: Math.max(0, roundTripMs - age_ms),
    wait,
    prepare: prepared,
    infer,
    rest: Math.max(0, age_ms - wait - prepared - infer),
  };
}

export class Chart {
  /** @type {Shares[]} */
  #bars = [];
  #changed = true;
  #canvas;
  #pen;
  #top = 50;

  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.#canvas = canvas;
    this.#pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    new ResizeObserver(([{ contentRect }]) => {
      const density = Math.min(2, devicePixelRatio || 1);
      canvas.width = Math.round(contentRect.width * density);
      canvas.height = Math.round(contentRect.height * density);
      this.#changed = true;
    }).observe(canvas);
  }

  /** @param {Shares} shares */
  add(shares) {
    this.#bars.push(shares);
    if (this.#bars.length > BARS) this.#bars.shift();
    this.#changed = true;
  }

  clear() {
    this.#bars = [];
    this.#changed = true;
  }

  /**
   * The mean of each part over what is shown.
   * @returns {Shares | null}
   */
  get means() {
    if (!this.#bars.length) return null;
    const sum = (/** @type {string} */ name) => this.#bars.reduce((so, bar) => so + bar[name], 0);
    return Object.fromEntries(PARTS.map(({ name }) => [name, sum(name) / this.#bars.length]));
  }

  draw() {
    if (!this.#changed) return;
    this.#changed = false;
    const { width, height } = this.#canvas;
    const pen = this.#pen;
    const ages = this.#bars.map((bar) => PARTS.reduce((sum, { name }) => sum + bar[name], 0));
    const most = [...ages].sort((a, b) => a - b)[Math.floor(ages.length * 0.97)] ?? 0;
    this.#top = GRID_MS.find((line) => line >= most * 1.05) ?? most;
    pen.clearRect(0, 0, width, height);
    if (!ages.length) return;
    this.#grid();
    const step = width / BARS;
    this.#bars.forEach((bar, index) => {
      const x = width - (this.#bars.length - index) * step;
      let y = height;
      for (const { name, colour } of PARTS) {
        const tall = (bar[name] / this.#top) * height;
        pen.fillStyle = colour;
        pen.fillRect(x, y - tall, Math.max(1, step - 1), tall);
        y -= tall;
      }
    });
  }

  #grid() {
    const { width, height } = this.#canvas;
    const density = Math.min(2, devicePixelRatio || 1);
    const pen = this.#pen;
    pen.strokeStyle = pen.fillStyle = getComputedStyle(this.#canvas).color;
    pen.font = `${11 * density}px system-ui, sans-serif`;
    pen.textBaseline = "top";
    for (const share of [0.5, 1]) {
      const y = Math.round(height * (1 - share)) + 0.5;
      pen.globalAlpha = 0.2;
      pen.beginPath();
      pen.moveTo(0, y);
      pen.lineTo(width, y);
      pen.stroke();
      pen.globalAlpha = 0.75;
      pen.fillText(`${Math.round(this.#top * share)} ms`, 2, y + 2);
    }
    pen.globalAlpha = 1;
  }
}
