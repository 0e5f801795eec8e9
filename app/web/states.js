// What the page shows of picture and session: the word in the header, the card over the picture, the banner.
//
// What is wrong with the picture comes before how the session is. All of it is made anew from what is known whenever
// something changes, so that nothing stays because the one thing that would have taken it away did not happen.

import { Card } from "./card.js";
import { element, make, say, within } from "./elements.js";
import { reportTable } from "./report.js";
import { duration } from "./words.js";

/** @import { Action, Content } from "./card.js" */
/** @import { Events } from "./client.js" */
/** @import { Problem } from "./problems.js" */
/** @import { Queued, Report } from "./protocol.js" */

const TICK_MS = 500;
const NOTICE_MS = 8000;
/** @type {Record<string, string>} */
const ENDED = {
  unauthorized: "A token is needed",
  start_refused: "The service was not started",
};
/** @typedef {"idle" | "good" | "wait" | "problem"} Tone */
/** @typedef {[what: string, tone: Tone, counting?: string]} Word `counting` goes on by the second: it is not read out. */
/** @typedef {Content & {word: Word, tick?: () => void}} View A card, and what goes with it. */

export class States {
  /** Begins again with the source that there was. */
  onagain = () => {};
  onretry = () => {};
  onleave = () => {};
  oncamera = () => {};
  onsample = () => {};
  #card = new Card(element("card", HTMLDivElement), element("stop", HTMLButtonElement));
  #status = element("status", HTMLParagraphElement);
  #banner = element("banner", HTMLDivElement);
  #retry = within(this.#banner, "button", HTMLButtonElement);
  #service = "";
  /** @type {Node[]} */
  #warnings = [];
  #bar = make("progress");
  /** @type {Events["state"]} */
  #session = { state: "idle", previous: "idle", reason: null, why: null, retryAt: null, silentSince: null };
  /** Whether there was a session to lose. */
  #served = false;
  /** @type {{queued: Queued, until: number | null} | null} */
  #place = null;
  /** @type {{starting: Events["starting"], until: number | null} | null} */
  #start = null;
  /**
   * Of the session that ended, as a table.
   * @type {Node[]}
   */
  #report = [];
  /**
   * Instead of a picture.
   * @type {{asking: string} | {problem: Problem, actions: Action[]} | null}
   */
  #instead = null;
  #notice = "";
  /**
   * Until another picture is shown, or until the session goes.
   * @type {"picture" | "session"}
   */
  #noticeOf = "session";
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #noticeEnds;
  /**
   * What is said anew as time passes.
   * @type {(() => void) | undefined}
   */
  #tick;

  constructor() {
    setInterval(() => this.#tick?.(), TICK_MS);
    this.#retry.onclick = () => this.onretry();
  }

  /**
   * @param {string} host Where frames go.
   * @param {string[]} warnings Something that was asked for and is not done.
   */
  begin(host, warnings) {
    this.#service = host;
    this.#warnings = warnings.map((text) => make("p", { className: "warning", textContent: text }));
    this.shown();
  }

  // --- the picture ---

  /** There is a picture, or nothing to say about there being none. */
  shown() {
    this.#instead = null;
    this.opening();
    this.#render();
  }

  /** Another picture is asked for: what was wrong with the last one is past. */
  opening() {
    if (this.#noticeOf === "picture") this.#unsay();
  }

  /**
   * @param {Problem} problem
   * @param {() => void} again
   */
  problem(problem, again) {
    const sample = { label: "Use the sample", run: () => this.onsample() };
    this.#instead = { problem, actions: [{ label: "Try again", run: again, primary: true }, sample] };
    this.#render();
  }

  /**
   * The page cannot begin.
   * @param {Problem} problem
   * @returns {Promise<void>} Until somebody wants to try again.
   */
  blocked(problem) {
    return new Promise((resolve) => {
      this.#instead = { problem, actions: [{ label: "Try again", run: resolve, primary: true }] };
      this.#render();
    });
  }

  /**
   * The browser asks the person for leave.
   * @param {string} text
   */
  asking(text) {
    this.#instead = { asking: text };
    this.#render();
  }

  // --- the session ---

  /** @param {Events["state"]} event */
  state(event) {
    this.#session = event;
    if (event.state === "live") this.#served = true;
    if (event.state === "ended") this.#served = false;
    if (event.state !== "queued") this.#place = null;
    if (event.state !== "starting") this.#start = null;
    if (event.state === "waiting" || event.state === "ended") this.#unsay();
    this.#render();
  }

  /** @param {Queued} queued */
  queued(queued) {
    this.#place = { queued, until: queued.eta_s === null ? null : performance.now() + queued.eta_s * 1000 };
    this.#render();
  }

  /** @param {Events["starting"]} starting */
  starting(starting) {
    this.#start = { starting, until: starting.etaS === null ? null : performance.now() + starting.etaS * 1000 };
    this.#render();
  }

  /** @param {Report | null} report */
  keepReport(report) {
    this.#report = report?.received ? [reportTable(report)] : [];
  }

  /**
   * Something is degraded or restored, or was not done.
   * @param {string} text
   * @param {"picture" | "session"} [of]
   */
  notice(text, of = "session") {
    this.#notice = text;
    this.#noticeOf = of;
    clearTimeout(this.#noticeEnds);
    this.#noticeEnds = setTimeout(() => this.#unsay(), NOTICE_MS);
    this.#render();
  }

  #unsay() {
    clearTimeout(this.#noticeEnds);
    this.#notice = "";
    this.#render();
  }

  // --- what is shown of it ---

  #render() {
    const view = this.#view();
    const { state, why, retryAt } = this.#session;
    this.#word(...(view?.word ?? this.#running()));
    if (view) this.#card.show(view);
    else this.#card.hide();
    this.#tick = view?.tick;
    if (!view && state === "stalled") this.#tick = () => this.#word(...this.#running());
    if (!view && state === "waiting") this.#tick = () => this.#bannerSays(why ?? "", retryAt);
    else this.#bannerSays(view ? "" : this.#notice, null);
    this.#tick?.();
  }

  /** @returns {View | null} Null: the picture is to be seen. */
  #view() {
    const { state } = this.#session;
    if (this.#instead && "problem" in this.#instead) {
      const { problem, actions } = this.#instead;
      return { ...problem, word: ["Not connected", "problem"], tone: "problem", actions };
    }
    if (this.#instead) {
      const word = this.#running();
      return { title: "One moment", text: this.#instead.asking, word, tone: "wait" };
    }
    if (state === "idle") return this.#idle();
    if (state === "queued" && this.#place) return this.#queued(this.#place);
    if (state === "starting") return this.#starting();
    return state === "ended" ? this.#ended() : null;
  }

  /** @returns {Word} */
  #running() {
    const { state, retryAt, silentSince } = this.#session;
    if (state === "live") return ["Live", "good"];
    if (state === "stalled") return ["No answer", "wait", ` for ${wholeSeconds(silentSince)} s`];
    if (state === "stopping") return ["Stopping …", "wait"];
    if (state === "connecting" || state === "starting" || state === "queued") return ["Connecting …", "wait"];
    if (state !== "waiting") return ["Not connected", "idle"];
    if (retryAt === null) return ["Paused", "wait"];
    return [this.#served ? "Connection lost" : "Not connected", "wait"];
  }

  /** @returns {View} */
  #idle() {
    return {
      word: ["Not connected", "idle"],
      title: "See what the service sees",
      text: `Frames go to ${this.#service} and nowhere else; none is kept.`,
      tone: "start",
      body: this.#warnings,
      actions: [
        { label: "Start the camera", run: () => this.oncamera(), primary: true },
        { label: "Try the sample", run: () => this.onsample() },
      ],
    };
  }

  /**
   * @param {{queued: Queued, until: number | null}} place
   * @returns {View}
   */
  #queued({ queued: { position }, until }) {
    return {
      word: [`Waiting room, number ${position}`, "wait"],
      title: position === 1 ? "You are next" : `Number ${position} in line`,
      text: "",
      tone: "wait",
      actions: [{ label: "Leave", run: () => this.onleave() }],
      tick: () => {
        let when = "";
        if (until !== null) {
          const left = (until - performance.now()) / 1000;
          when = left > 0 ? ` That takes ${duration(left)}, going by the last sessions.` : " That should be soon.";
        }
        this.#card.say(`All places are taken. Yours opens by itself; leave this page open.${when}`);
      },
    };
  }

  /** @returns {View} */
  #starting() {
    const bar = this.#bar;
    const { starting, until } = this.#start ?? { starting: null, until: null };
    const since = starting?.since ?? performance.now();
    if (until === null) bar.removeAttribute("value");
    else bar.max = Math.max(1, (until - since) / 1000);
    return {
      word: ["Starting the service …", "wait"],
      title: "The service is starting",
      text: "",
      tone: "wait",
      body: [bar],
      actions: [{ label: "Cancel", run: () => this.onleave() }],
      tick: () => {
        const gone = (performance.now() - since) / 1000;
        if (until !== null) bar.value = Math.min(gone, bar.max * 0.98);
        let when = `${Math.round(gone)} s so far.`;
        if (until !== null) {
          const left = (until - performance.now()) / 1000;
          when = left > 0 ? `About ${duration(left).replace("about ", "")} to go.` : "Any moment now.";
        }
        const stopping = starting?.state === "stopping";
        const what = stopping ? "It is just being switched off, and starts after that." : "It was switched off.";
        this.#card.say([what, when, starting?.message].filter(Boolean).join(" "));
      },
    };
  }

  /** @returns {View} */
  #ended() {
    const { reason, why } = this.#session;
    const refused = reason === "unauthorized" || reason === "start_refused";
    return {
      word: refused ? ["Not connected", "problem"] : ["Ended", "idle"],
      title: (reason && ENDED[reason]) || "The session has ended",
      text: why ?? "",
      tone: refused ? "problem" : "calm",
      body: this.#report,
      actions: [{ label: "Start again", run: () => this.onagain(), primary: true }],
    };
  }

  /**
   * @param {string} text Empty: nothing is to be said.
   * @param {number | null} retryAt
   */
  #bannerSays(text, retryAt) {
    const waiting = this.#session.state === "waiting" && text !== "";
    const [what, when] = within(this.#banner, "p", HTMLParagraphElement).children;
    const left = retryAt === null ? 0 : Math.max(0, Math.ceil((retryAt - performance.now()) / 1000));
    say(what, text);
    say(when, retryAt === null ? "" : `Connecting again in ${left} s.`);
    this.#retry.hidden = !waiting;
    this.#banner.hidden = !text;
  }

  /** @param {Word} word */
  #word(...[text, tone, counting = ""]) {
    const [what, count] = within(this.#status, "span", HTMLSpanElement).children;
    say(what, text);
    say(count, counting);
    this.#status.dataset.tone = tone;
    document.body.dataset.tone = tone;
  }
}

/** @param {number | null} since */
function wholeSeconds(since) {
  return since === null ? 0 : Math.floor((performance.now() - since + 50) / 1000);
}
