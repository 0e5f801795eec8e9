// What the page shows of the session's state: the word in the header, the card over the picture, the banner.

import { Card } from "./card.js";
import { element, make, say, within } from "./elements.js";
import { reportTable } from "./report.js";
import { duration } from "./words.js";

/** @import { Content } from "./card.js" */
/** @import { Events } from "./client.js" */
/** @import { Problem } from "./problems.js" */
/** @import { Queued, Report } from "./protocol.js" */

const TICK_MS = 500;
/** @type {Record<string, string>} */
const ENDED = {
  unauthorized: "A token is needed",
  start_refused: "The service was not started",
};
/** @typedef {"idle" | "good" | "wait" | "problem"} Tone */

export class States {
  /** Begins again with the source that there was. */
  onagain = () => {};
  onretry = () => {};
  onleave = () => {};
  onsample = () => {};
  #card = new Card(element("card", HTMLDivElement));
  #status = element("status", HTMLParagraphElement);
  #banner = element("banner", HTMLDivElement);
  #bannerText = within(this.#banner, "p", HTMLParagraphElement);
  /**
   * What is said anew as time passes.
   * @type {(() => void) | null}
   */
  #tick = null;
  /** @type {Report | null} */
  #report = null;
  #service = "";
  #bar = make("progress");

  constructor() {
    setInterval(() => this.#tick?.(), TICK_MS);
    within(this.#banner, "button", HTMLButtonElement).onclick = () => this.onretry();
  }

  /** @param {string} host Where frames go. */
  begin(host) {
    this.#service = host;
    this.idle();
  }

  idle() {
    this.#word("Not connected", "idle");
    this.#show({
      title: "See what the service sees",
      text: `Start the camera, or try the sample. Frames go to ${this.#service} and nowhere else; none is kept.`,
      tone: "start",
    });
  }

  /**
   * @param {Problem} problem
   * @param {() => void} again
   */
  problem({ title, text }, again) {
    this.#word("Not connected", "problem");
    this.#show({
      title,
      text,
      tone: "problem",
      actions: [
        { label: "Try again", run: again, primary: true },
        { label: "Use the sample", run: () => this.onsample() },
      ],
    });
  }

  /**
   * The browser asks the person for leave.
   * @param {string} text
   */
  asking(text) {
    this.#show({ title: "One moment", text, tone: "wait" });
  }

  /** @param {Events["state"]} event */
  state({ state, reason, why, retryAt }) {
    if (state === "connecting") {
      this.#word("Connecting …", "wait");
      this.#clear();
    } else if (state === "live") {
      this.#word("Live", "good");
      this.#clear();
    } else if (state === "starting") {
      this.starting({ state: "starting", etaS: null, url: null, message: null, since: performance.now() });
    } else if (state === "waiting") this.#waiting(why ?? "", retryAt);
    else if (state === "ended") this.#ended(reason, why ?? "");
  }

  /** @param {Queued} queued */
  queued({ position, eta_s: eta }) {
    const until = eta === null ? null : performance.now() + eta * 1000;
    this.#word(`Waiting room, number ${position}`, "wait");
    this.#show({
      title: position === 1 ? "You are next" : `Number ${position} in line`,
      text: "",
      tone: "wait",
      actions: [{ label: "Leave", run: () => this.onleave() }],
    });
    this.#every(() => {
      let when = "";
      if (until !== null) {
        const left = (until - performance.now()) / 1000;
        when = left > 0 ? ` That takes ${duration(left)}, going by the last sessions.` : " That should be soon.";
      }
      this.#card.say(`All places are taken. Yours opens by itself; leave this page open.${when}`);
    });
  }

  /** @param {Events["starting"]} event */
  starting({ state, etaS, message, since }) {
    const bar = this.#bar;
    const until = etaS === null ? null : performance.now() + etaS * 1000;
    if (until === null) bar.removeAttribute("value");
    if (until !== null) bar.max = Math.max(1, (until - since) / 1000);
    this.#word("Starting the service …", "wait");
    this.#show({
      title: "The service is starting",
      text: "",
      tone: "wait",
      body: [bar],
      actions: [{ label: "Cancel", run: () => this.onleave() }],
    });
    this.#every(() => {
      const gone = (performance.now() - since) / 1000;
      if (until !== null) bar.value = Math.min(gone, bar.max * 0.98);
      let when = `${Math.round(gone)} s so far.`;
      if (until !== null) {
        const left = (until - performance.now()) / 1000;
        when = left > 0 ? `About ${duration(left).replace("about ", "")} to go.` : "Any moment now.";
      }
      const stopping = state === "stopping";
      const what = stopping ? "It is just being switched off, and starts after that." : "It was switched off.";
      this.#card.say([what, when, message].filter(Boolean).join(" "));
    });
  }

  /** @param {Report | null} report */
  keepReport(report) {
    this.#report = report;
  }

  /**
   * The service says that something is degraded or restored.
   * @param {string} text
   */
  notice(text) {
    this.#bannerSays(text, false);
    setTimeout(() => {
      if (this.#bannerText.textContent === text) this.#banner.hidden = true;
    }, 8000);
  }

  /**
   * @param {string} why
   * @param {number | null} retryAt
   */
  #waiting(why, retryAt) {
    this.#card.hide();
    this.#every(() => {
      const left = retryAt === null ? 0 : Math.max(0, Math.ceil((retryAt - performance.now()) / 1000));
      this.#word(retryAt === null ? "Paused" : "Connection lost", "wait");
      this.#bannerSays(retryAt === null ? why : `${why} Connecting again in ${left} s.`, true);
    });
  }

  /**
   * @param {string | null} reason
   * @param {string} why
   */
  #ended(reason, why) {
    const report = this.#report;
    const refused = reason === "unauthorized" || reason === "start_refused";
    this.#word(refused ? "Not connected" : "Ended", refused ? "problem" : "idle");
    this.#show({
      title: (reason && ENDED[reason]) || "The session has ended",
      text: why,
      tone: refused ? "problem" : "calm",
      body: report?.received ? [reportTable(report)] : [],
      actions: [{ label: "Start again", run: () => this.onagain(), primary: true }],
    });
  }

  /** @param {Content} content */
  #show(content) {
    this.#tick = null;
    this.#banner.hidden = true;
    this.#card.show(content);
  }

  #clear() {
    this.#tick = null;
    this.#banner.hidden = true;
    this.#card.hide();
  }

  /** @param {() => void} tick */
  #every(tick) {
    this.#tick = tick;
    tick();
  }

  /**
   * @param {string} text
   * @param {boolean} retry
   */
  #bannerSays(text, retry) {
    say(this.#bannerText, text);
    within(this.#banner, "button", HTMLButtonElement).hidden = !retry;
    this.#banner.hidden = false;
  }

  /**
   * @param {string} text
   * @param {Tone} tone
   */
  #word(text, tone) {
    say(this.#status, text);
    this.#status.dataset.tone = tone;
    document.body.dataset.tone = tone;
  }
}
