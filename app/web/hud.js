// The figures of the page: rates, ages, the chart of the delay, totals of the session, summaries.

import { element, fillRows, focusWhenScrolling, make, setText, within } from "./elements.js";
import { figureText, modelName } from "./stages.js";
import { bytes, inViewText } from "./text.js";

/** @import { Events } from "./client.js" */
/** @import { Ready, Refusal, Result, Summary } from "./protocol.js" */
/** @import { RateControl, Sender } from "./sender.js" */
/** @import { ShownStage } from "./stages.js" */

const EVERY_MS = 250;
const ANNOUNCE_MS = 4000; // shortest time between two announcements of what is in view
const FORGOTTEN_MS = 1000; // a sentence stays this long after a jump, because a video that begins again shows something at once

/** Shows the figures four times a second: rates, ages of results, shares of the time, totals, what is in view. */
export class Hud {
  camera = new RateMeter();
  drawn = new RateMeter();
  results = new RateMeter();
  ages = new Samples();
  #chart = new Chart(element("chart", HTMLCanvasElement));
  #sender;
  #rateControl;
  /** @type {Ready | null} */
  #ready = null;
  /** @type {ShownStage[]} */
  #stages = [];
  /**
   * The figures of stages, each with where it is shown.
   * @type {{stage: ShownStage, output: HTMLOutputElement}[]}
   */
  #tiles = [];
  /**
   * The latest result of what the page shows.
   * @type {Result | null}
   */
  #seen = null;
  /**
   * Number of refused frames by reason.
   * @type {Map<string, number>}
   */
  #refused = new Map();
  #failed = 0;
  #dropped = 0;
  #announcedAt = -Infinity;
  #forgotAt = -Infinity;

  /**
   * @param {Sender} sender
   * @param {RateControl} rateControl
   */
  constructor(sender, rateControl) {
    this.#sender = sender;
    this.#rateControl = rateControl;
    element("legend", HTMLUListElement).append(
      ...PARTS.map(({ title, colour }) => {
        const swatch = make("i");
        swatch.style.background = colour;
        return make("li", {}, swatch, make("span", { textContent: title }), make("b"));
      }),
    );
    focusWhenScrolling(within(element("summaries", HTMLElement), "ol", HTMLOListElement));
    setInterval(() => this.#show(), EVERY_MS);
  }

  /**
   * Shows a figure for each stage that has one.
   * @param {ShownStage[]} stages
   */
  show(stages) {
    if (stages === this.#stages) return;
    this.#stages = stages;
    const list = element("figures", HTMLDListElement);
    for (const { output } of this.#tiles) output.closest("div")?.remove();
    this.#tiles = stages.filter(({ figures }) => figures.some(({ place }) => place === "figures")).map((stage) => {
      const output = make("output", { id: `figure-${stage.name}`, textContent: "–" });
      list.append(make("div", {}, make("dt", { textContent: stage.title }), make("dd", {}, output)));
      return { stage, output };
    });
  }

  /**
   * Begins a session.
   * @param {Ready} ready
   * @param {ShownStage[]} stages
   */
  begin(ready, stages) {
    this.show(stages);
    this.#ready = ready;
    this.#seen = null;
    this.#refused.clear();
    this.#failed = this.#dropped = 0;
    this.ages.clear();
    this.results.clear();
    this.#chart.clear();
  }

  /** Forgets what is in view. */
  forget() {
    if (this.#seen) this.#forgotAt = performance.now();
    this.#seen = null;
  }

  /** Called while no results come. */
  pause() {
    this.forget();
    this.results.clear();
  }

  /** Called when the session has ended. */
  end() {
    this.pause();
    this.camera.clear();
    this.ages.clear();
    this.#chart.clear();
  }

  /**
   * Takes a result.
   * @param {Events["result"]} event
   * @param {Result | null} seen The parts of the result that belong to what the page shows.
   */
  observe({ result, receivedAt, roundTripMs, ageMs }, seen) {
    this.#seen = seen ?? this.#seen;
    this.#dropped = result.dropped.total;
    this.results.tick(receivedAt);
    if (ageMs === null || roundTripMs === null) return;
    this.ages.add(ageMs);
    this.#chart.add(sharesOf(result, ageMs, roundTripMs, this.#ready?.models ?? {}));
  }

  /**
   * Counts a refused frame.
   * @param {Refusal} refusal
   */
  refused({ code, seq }) {
    if (seq === null) return;
    if (code === "internal") this.#failed += 1;
    else this.#refused.set(code, (this.#refused.get(code) ?? 0) + 1);
  }

  #show() {
    if (document.hidden) return;
    const now = performance.now();
    const live = this.camera.total > 0;
    showNumber("camera-fps", live ? this.camera.rate(now) : null, 0);
    showNumber("drawn-fps", live ? this.drawn.rate(now) : null, 0);
    showNumber("result-fps", this.results.total ? this.results.rate(now) : null, 1);
    showNumber("age-p50", this.ages.quantile(0.5), 0);
    showNumber("age-p95", this.ages.quantile(0.95), 0);
    for (const { stage, output } of this.#tiles) setText(output, figureText(stage, "figures", this.#seen) || "–");
    this.#chart.draw();
    this.#legend();
    this.#sending();
    this.#session();
    this.#announce(now);
  }

  #legend() {
    const means = this.#chart.means;
    const items = element("legend", HTMLUListElement).children;
    PARTS.forEach(({ name }, index) => {
      const ms = means?.[name];
      setText(within(items[index], "b", HTMLElement), ms === undefined ? "–" : `${ms.toFixed(ms < 10 ? 1 : 0)} ms`);
    });
    const [p50, p95] = [this.ages.quantile(0.5), this.ages.quantile(0.95)];
    const none = p50 === null || p95 === null;
    const text = none ? "no results yet" : `median ${p50.toFixed(0)} ms, p95 ${p95.toFixed(0)} ms`;
    element("chart", HTMLCanvasElement).ariaLabel = `Age of the latest results: ${text}`;
  }

  #sending() {
    const { width, height, bytes: size } = this.#sender.last;
    if (!size) return;
    const { quality, rate } = this.#rateControl;
    const frame = `${width} × ${height}, quality ${Math.round(quality * 100)}%, ${bytes(size)} a frame`;
    setText(element("sent-frame", HTMLParagraphElement), `${frame}, up to ${rate.toFixed(rate < 10 ? 1 : 0)} a second`);
  }

  #session() {
    const { frames, sent, skipped } = this.#sender.counts;
    const rows = /** @type {[string, string][]} */ ([]);
    if (this.#ready) {
      const { models } = this.#ready;
      const asking = this.#stages.filter(({ name }) => Object.hasOwn(models, name));
      rows.push(["Session", this.#ready.session_id.slice(0, 12)]);
      for (const { name, title } of asking) rows.push([`Model for ${title.toLowerCase()}`, modelName(models[name]) ?? "none"]);
    }
    if (frames) rows.push(["Frames sent", `${sent} of ${frames}`], ["Not sent", countsText(Object.entries(skipped))]);
    if (this.#ready) rows.push(["Dropped by the service", this.#droppedText()]);
    if (this.#failed) rows.push(["Failed at the service", String(this.#failed)]);
    fillRows(within(element("session", HTMLElement), "dl", HTMLDListElement), rows);
  }

  /** The service sends the number of dropped frames. Those with a reason came as `error`; newer frames superseded the others. */
  #droppedText() {
    const refused = [...this.#refused.values()].reduce((sum, count) => sum + count, 0);
    const reasons = new Map(this.#refused);
    if (this.#dropped > refused) reasons.set("superseded", this.#dropped - refused);
    return countsText([...reasons]);
  }

  /**
   * Updates the sentence that screen readers announce.
   * @param {number} now
   */
  #announce(now) {
    if (this.#seen ? now - this.#announcedAt < ANNOUNCE_MS : now - this.#forgotAt < FORGOTTEN_MS) return;
    const text = this.#seen ? inViewText(this.#seen, this.#stages) : "nothing yet";
    const seen = element("seen", HTMLParagraphElement);
    if (seen.textContent === text) return;
    this.#announcedAt = now;
    setText(seen, text);
    element("overlay", HTMLCanvasElement).ariaLabel = this.#seen ? `In view: ${text}` : "No image yet";
  }
}

/**
 * @param {string} id
 * @param {number | null} value
 * @param {number} digits
 */
function showNumber(id, value, digits) {
  setText(element(id, HTMLOutputElement), value === null ? "–" : value.toFixed(digits));
}

/** @param {[string, number][]} counts Pairs of reason and count. */
function countsText(counts) {
  return counts.map(([reason, count]) => `${reason.replaceAll("_", " ")} ${count}`).join(", ") || "none";
}

// --- rates and quantiles ---

/** The rate of an event over a sliding window. The caller passes the times, in milliseconds. */
export class RateMeter {
  /** @type {number[]} */
  #times = [];

  /** @param {number} windowMs */
  constructor(windowMs = 2000) {
    this.windowMs = windowMs;
    this.total = 0;
  }

  /**
   * Counts an event.
   * @param {number} now
   */
  tick(now) {
    this.total += 1;
    this.#times.push(now);
    if (this.#times.length > 512) this.#forget(now);
  }

  /**
   * Events per second: the number of intervals divided by their duration, so that the rate is right soon after the start.
   * @param {number} now
   */
  rate(now) {
    this.#forget(now);
    const times = this.#times;
    if (times.length < 2) return 0;
    const first = times[0];
    const last = times[times.length - 1];
    // When the events stop, the rate falls at once and not only after the window.
    const stopped = now - last > (3 * (last - first)) / (times.length - 1);
    const span = (stopped ? now : last) - first;
    return span > 0 ? ((times.length - 1) * 1000) / span : 0;
  }

  clear() {
    this.#times = [];
    this.total = 0;
  }

  /** @param {number} now */
  #forget(now) {
    const first = this.#times.findIndex((time) => now - time <= this.windowMs);
    this.#times = first < 0 ? [] : this.#times.slice(first);
  }
}

/** The latest values and their quantiles. */
export class Samples {
  /** @type {number[]} */
  #values = [];
  #next = 0;

  /** @param {number} size */
  constructor(size = 240) {
    this.size = size;
  }

  /** @param {number} value */
  add(value) {
    this.#values[this.#next] = value;
    this.#next = (this.#next + 1) % this.size;
  }

  /**
   * The quantile by nearest rank.
   * @param {number} q 0 to 1.
   * @returns {number | null} Null without any value.
   */
  quantile(q) {
    if (!this.#values.length) return null;
    const ordered = [...this.#values].sort((a, b) => a - b);
    return ordered[Math.max(0, Math.ceil(q * ordered.length) - 1)];
  }

  clear() {
    this.#values = [];
    this.#next = 0;
  }
}

// --- the chart of the delay ---

/**
 * The parts of a result's age in the order in which a frame passes them, milliseconds.
 * @typedef {Record<string, number>} Shares
 */

const PARTS = [
  { name: "encode", title: "encode", colour: "#8b9cf7" },
  { name: "network", title: "network", colour: "#4dc3ff" },
  { name: "wait", title: "waiting", colour: "#ff8f6b" },
  { name: "prepare", title: "decode", colour: "#f5c542" },
  { name: "infer", title: "models", colour: "#3ddc84" },
  { name: "rest", title: "other", colour: "#98a2b0" },
];
const BARS = 90;
const GRID_MS = [10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000];

/** The steps of every frame that are not shown by themselves. All other timings are of stages. */
const OTHER_STEPS = new Set(["parse", "total"]);

/**
 * Splits the time from the capture of a frame to the arrival of its result. What stages measure themselves counts as the models'
 * time where they ask a model, else as preparation.
 * @param {Pick<Result, "age_ms" | "timings_ms">} result
 * @param {number} ageMs Time from capture to arrival, by this machine's clock.
 * @param {number} roundTripMs
 * @param {Ready["models"]} models
 * @returns {Shares}
 */
export function sharesOf({ age_ms, timings_ms }, ageMs, roundTripMs, models) {
  const { queue = 0, gate = 0, decode = 0, prepare = 0, infer = 0, ...others } = timings_ms;
  const wait = queue + gate;
  let [prepared, asked] = [decode + prepare, infer];
  for (const [name, ms] of Object.entries(others)) {
    if (OTHER_STEPS.has(name)) continue;
    if (models[name]) asked += ms;
    else prepared += ms;
  }
  return {
    encode: Math.max(0, ageMs - roundTripMs),
    network: Math.max(0, roundTripMs - age_ms),
    wait,
    prepare: prepared,
    infer: asked,
    rest: Math.max(0, age_ms - wait - prepared - asked),
  };
}

/** The ages of the latest results, one bar each, with the parts stacked in it. */
class Chart {
  /** @type {Shares[]} */
  #bars = [];
  #changed = true;
  #canvas;
  #context;
  #top = 50;

  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.#canvas = canvas;
    this.#context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
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
   * The mean of each part over the shown bars.
   * @returns {Shares | null}
   */
  get means() {
    if (!this.#bars.length) return null;
    const sum = (/** @type {string} */ name) => this.#bars.reduce((total, bar) => total + bar[name], 0);
    return Object.fromEntries(PARTS.map(({ name }) => [name, sum(name) / this.#bars.length]));
  }

  /** Draws the chart where it has changed. */
  draw() {
    if (!this.#changed) return;
    this.#changed = false;
    const { width, height } = this.#canvas;
    const context = this.#context;
    const ages = this.#bars.map((bar) => PARTS.reduce((sum, { name }) => sum + bar[name], 0));
    const most = [...ages].sort((a, b) => a - b)[Math.floor(ages.length * 0.97)] ?? 0;
    this.#top = GRID_MS.find((line) => line >= most * 1.05) ?? most;
    context.clearRect(0, 0, width, height);
    if (!ages.length) return;
    this.#grid();
    const step = width / BARS;
    this.#bars.forEach((bar, index) => {
      const x = width - (this.#bars.length - index) * step;
      let y = height;
      for (const { name, colour } of PARTS) {
        const tall = (bar[name] / this.#top) * height;
        context.fillStyle = colour;
        context.fillRect(x, y - tall, Math.max(1, step - 1), tall);
        y -= tall;
      }
    });
  }

  #grid() {
    const { width, height } = this.#canvas;
    const density = Math.min(2, devicePixelRatio || 1);
    const context = this.#context;
    context.strokeStyle = context.fillStyle = getComputedStyle(this.#canvas).color;
    context.font = `${11 * density}px system-ui, sans-serif`;
    context.textBaseline = "top";
    for (const share of [0.5, 1]) {
      const y = Math.round(height * (1 - share)) + 0.5;
      context.globalAlpha = 0.2;
      context.beginPath();
      context.moveTo(0, y);
      context.lineTo(width, y);
      context.stroke();
      context.globalAlpha = 0.75;
      context.fillText(`${Math.round(this.#top * share)} ms`, 2, y + 2);
    }
    context.globalAlpha = 1;
  }
}

// --- summaries ---

const MOST_SUMMARIES = 12;

const SUMMARY_SOURCES = { llm: "LLM", digest: "digest" };

/**
 * Shows a summary as a card above the earlier ones.
 * @param {Summary} summary
 */
export function showSummary(summary) {
  const section = element("summaries", HTMLElement);
  const list = within(section, "ol", HTMLOListElement);
  section.hidden = false;
  list.prepend(summaryItem(summary));
  while (list.children.length > MOST_SUMMARIES) list.lastElementChild?.remove();
}

/** Removes all summaries. */
export function clearSummaries() {
  const section = element("summaries", HTMLElement);
  within(section, "ol", HTMLOListElement).replaceChildren();
  section.hidden = true;
}

/** @param {Summary} summary */
function summaryItem({ source, title, scene, activities = [], visible_text = [], concerns = [], generated_at_ms }) {
  const made = new Date(generated_at_ms);
  const mark = make("span", { className: "mark", textContent: SUMMARY_SOURCES[source] ?? source });
  mark.dataset.source = source;
  const time = make("time", { dateTime: made.toISOString(), textContent: made.toLocaleTimeString() });
  const facts = [
    ["Happening", activities.join("; ")],
    ["Text", visible_text.join(", ")],
    ["Concerns", concerns.join("; ")],
  ].filter(([, text]) => text);
  return make(
    "li",
    {},
    make("h3", {}, title, mark),
    make("p", { textContent: scene }),
    ...facts.map(([name, text]) => make("p", { className: "fact" }, make("b", { textContent: `${name}: ` }), text)),
    time,
  );
}
