// The figures: how fast everything is, how old results are, where the time goes. Four times a second, whatever happens.

import { Chart, PARTS, sharesOf } from "./chart.js";
import { element, fillRows, make, say, within } from "./elements.js";
import { RateMeter, Samples } from "./stats.js";
import { bytes, seenWords } from "./words.js";

/** @import { Events } from "./client.js" */
/** @import { RateControl } from "./sender.js" */
/** @import { Motion, Ready, Refusal, Result } from "./protocol.js" */
/** @import { Sender } from "./sender.js" */

const EVERY_MS = 250;
const SPOKEN_MS = 4000; // a screen reader is told what is in view this often at most
const FORGOTTEN_MS = 1000; // a film that begins again shows something else at once

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
  /**
   * The latest of the picture that is shown.
   * @type {Result | null}
   */
  #seen = null;
  /**
   * By reason, as far as the service says one.
   * @type {Map<string, number>}
   */
  #refused = new Map();
  #failed = 0;
  #dropped = 0;
  #spokenAt = -Infinity;
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
    setInterval(() => this.#show(), EVERY_MS);
  }

  /**
   * A session began.
   * @param {Ready} ready
   */
  begin(ready) {
    this.#ready = ready;
    this.#seen = null;
    this.#refused.clear();
    this.#failed = this.#dropped = 0;
    this.ages.clear();
    this.results.clear();
    this.#chart.clear();
  }

  /** Nothing is known to be in view. */
  forget() {
    if (this.#seen) this.#forgotAt = performance.now();
    this.#seen = null;
  }

  /** No results come for now. */
  pause() {
    this.forget();
    this.results.clear();
  }

  /** There is no picture any more. */
  end() {
    this.pause();
    this.camera.clear();
    this.ages.clear();
    this.#chart.clear();
  }

  /**
   * @param {Events["result"]} event
   * @param {Result | null} seen As much of it as is of the picture that is shown.
   */
  observe({ result, receivedAt, roundTripMs, ageMs }, seen) {
    this.#seen = seen ?? this.#seen;
    this.#dropped = result.dropped.total;
    this.results.tick(receivedAt);
    if (ageMs === null || roundTripMs === null) return;
    this.ages.add(ageMs);
    this.#chart.add(sharesOf(result, ageMs, roundTripMs));
  }

  /** @param {Refusal} refusal */
  refused({ code, seq }) {
    if (seq === null) return;
    if (code === "internal") this.#failed += 1;
    else this.#refused.set(code, (this.#refused.get(code) ?? 0) + 1);
  }

  #show() {
    if (document.hidden) return;
    const now = performance.now();
    const live = this.camera.total > 0;
    number("camera-fps", live ? this.camera.rate(now) : null, 0);
    number("drawn-fps", live ? this.drawn.rate(now) : null, 0);
    number("result-fps", this.results.total ? this.results.rate(now) : null, 1);
    number("age-p50", this.ages.quantile(0.5), 0);
    number("age-p95", this.ages.quantile(0.95), 0);
    say(element("motion", HTMLOutputElement), motionWords(this.#seen?.motion ?? null));
    this.#chart.draw();
    this.#legend();
    this.#sending();
    this.#session();
    this.#speak(now);
  }

  #legend() {
    const means = this.#chart.means;
    const items = element("legend", HTMLUListElement).children;
    PARTS.forEach(({ name }, index) => {
      const ms = means?.[name];
      say(within(items[index], "b", HTMLElement), ms === undefined ? "–" : `${ms.toFixed(ms < 10 ? 1 : 0)} ms`);
    });
    const [p50, p95] = [this.ages.quantile(0.5), this.ages.quantile(0.95)];
    const none = p50 === null || p95 === null;
    const words = none ? "no results yet" : `median ${p50.toFixed(0)} ms, p95 ${p95.toFixed(0)} ms`;
    element("chart", HTMLCanvasElement).ariaLabel = `Age of the latest results: ${words}`;
  }

  #sending() {
    const { width, height, bytes: size } = this.#sender.last;
    if (!size) return;
    const { quality, rate } = this.#rateControl;
    const frame = `${width} × ${height}, quality ${Math.round(quality * 100)}%, ${bytes(size)} a frame`;
    say(element("pace", HTMLParagraphElement), `${frame}, up to ${rate.toFixed(rate < 10 ? 1 : 0)} a second`);
  }

  #session() {
    const { frames, sent, skipped } = this.#sender.counts;
    const rows = /** @type {[string, string][]} */ ([]);
    if (this.#ready) {
      const { detect, pose, ocr } = this.#ready.models;
      rows.push(
        ["Session", this.#ready.session_id.slice(0, 12)],
        ["Objects by", detect?.name ?? "nobody"],
        ["Poses by", pose?.name ?? "nobody"],
        ["Text by", ocr ?? "nobody"],
      );
    }
    if (frames) rows.push(["Frames sent", `${sent} of ${frames}`], ["Not sent", countWords(Object.entries(skipped))]);
    if (this.#ready) rows.push(["Dropped there", this.#droppedWords()]);
    if (this.#failed) rows.push(["Failed there", String(this.#failed)]);
    fillRows(within(element("session", HTMLElement), "dl", HTMLDListElement), rows);
  }

  /** The service tells how many; those it gave a reason for came as `error`, the others were superseded. */
  #droppedWords() {
    const told = [...this.#refused.values()].reduce((sum, count) => sum + count, 0);
    const reasons = new Map(this.#refused);
    if (this.#dropped > told) reasons.set("superseded", this.#dropped - told);
    return countWords([...reasons]);
  }

  /** @param {number} now */
  #speak(now) {
    if (this.#seen ? now - this.#spokenAt < SPOKEN_MS : now - this.#forgotAt < FORGOTTEN_MS) return;
    const words = this.#seen ? seenWords(this.#seen) : "nothing yet";
    const seen = element("seen", HTMLParagraphElement);
    if (seen.textContent === words) return;
    this.#spokenAt = now;
    say(seen, words);
    element("overlay", HTMLCanvasElement).ariaLabel = this.#seen ? `In view: ${words}` : "No picture yet";
  }
}

/**
 * @param {string} id
 * @param {number | null} value
 * @param {number} digits
 */
function number(id, value, digits) {
  say(element(id, HTMLOutputElement), value === null ? "–" : value.toFixed(digits));
}

/** @param {[string, number][]} counts By reason. */
function countWords(counts) {
  return counts.map(([reason, count]) => `${reason.replaceAll("_", " ")} ${count}`).join(", ") || "none";
}

/** @param {Motion | null} motion */
function motionWords(motion) {
  if (!motion) return "–";
  const { moving_fraction, direction_deg } = motion;
  const arrow = direction_deg === null ? "" : "→↘↓↙←↖↑↗"[Math.round(direction_deg / 45) % 8];
  return `${Math.round(moving_fraction * 100)}% ${arrow}`.trim();
}
