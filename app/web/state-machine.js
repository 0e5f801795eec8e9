// The state of source and session, and how the page shows it.

import { element, fillRows, focusWhenScrolling, make, setText, within } from "./elements.js";
import { bytes, duration } from "./text.js";

/** @import { Events } from "./client.js" */
/** @import { Queued, Report } from "./protocol.js" */
/** @import { Problem } from "./source-switch.js" */

/**
 * @typedef {object} Action
 * @property {string} label
 * @property {() => void} run
 * @property {boolean} [primary]
 */
/**
 * @typedef {object} Content
 * @property {string} title
 * @property {string} text
 * @property {"start" | "calm" | "wait" | "problem"} [tone]
 * @property {Action[]} [actions]
 * @property {Node[]} [body] Nodes between text and actions.
 */

const TICK_MS = 500;
const NOTICE_MS = 8000;
/** @type {Record<string, string>} */
const ENDED = {
  unauthorized: "A token is needed",
  start_refused: "The service was not started",
};
/** @typedef {"idle" | "good" | "wait" | "problem"} Tone */
/**
 * The status in the header. `counting` changes every second, so that screen readers do not announce it.
 * @typedef {[text: string, tone: Tone, counting?: string]} Status
 */
/** @typedef {Content & {status: Status, tick?: () => void}} View A card with its status; `tick` updates both as time passes. */

/**
 * Holds the state of source and session, and shows it: the status in the header, the card over the image, the banner.
 *
 * A problem with the source takes precedence over the state of the session. Every change renders everything again from the
 * state, so that nothing stays on the page because the event that would have removed it did not come.
 */
export class StateMachine {
  /** Called when the user starts again with the last source. */
  onagain = () => {};
  /** Called when the user connects without waiting. */
  onretry = () => {};
  /** Called when the user leaves the queue or cancels the start. */
  onleave = () => {};
  oncamera = () => {};
  onsample = () => {};
  #card = new Card(element("card", HTMLDivElement), element("stop", HTMLButtonElement));
  #statusLine = element("status", HTMLParagraphElement);
  #banner = element("banner", HTMLDivElement);
  #retry = within(this.#banner, "button", HTMLButtonElement);
  #service = "";
  /** @type {Node[]} */
  #warnings = [];
  #bar = make("progress");
  /** @type {Events["state"]} */
  #session = { state: "idle", previous: "idle", reason: null, why: null, retryAt: null, silentSince: null };
  /** Whether there has been a live session, so that the header says “Connection lost” and not “Not connected”. */
  #served = false;
  /**
   * The place in the queue, and the estimated time at which the session starts.
   * @type {{queued: Queued, until: number | null} | null}
   */
  #place = null;
  /**
   * The state of the start, and the estimated time of its end.
   * @type {{starting: Events["starting"], until: number | null} | null}
   */
  #start = null;
  /**
   * The report of the session that ended, as a table.
   * @type {Node[]}
   */
  #report = [];
  /**
   * What the page shows in place of a source: a prompt of the browser, or a problem.
   * @type {{prompt: string} | {problem: Problem, actions: Action[]} | null}
   */
  #instead = null;
  #notice = "";
  /**
   * What the notice is about. The notice disappears with it.
   * @type {"source" | "session"}
   */
  #noticeOf = "session";
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #noticeEnds;
  /**
   * Updates the texts that change as time passes.
   * @type {(() => void) | undefined}
   */
  #tick;

  constructor() {
    setInterval(() => this.#tick?.(), TICK_MS);
    this.#retry.onclick = () => this.onretry();
  }

  /**
   * The page is complete.
   * @param {string} host Host of the service.
   * @param {string[]} warnings Parts of the page's address that have no effect.
   */
  begin(host, warnings) {
    this.#service = host;
    this.#warnings = warnings.map((text) => make("p", { className: "warning", textContent: text }));
    this.sourceShown();
  }

  // --- the source ---

  /** A source is shown, or the user has stopped it. */
  sourceShown() {
    this.#instead = null;
    this.sourceOpening();
    this.#render();
  }

  /** Another source is being opened, so that a notice about the last one is outdated. */
  sourceOpening() {
    if (this.#noticeOf === "source") this.#clearNotice();
  }

  /**
   * The source cannot be opened, or has ended.
   * @param {Problem} problem
   * @param {() => void} again Tries again.
   */
  problem(problem, again) {
    const sample = { label: "Use the sample", run: () => this.onsample() };
    this.#instead = { problem, actions: [{ label: "Try again", run: again, primary: true }, sample] };
    this.#render();
  }

  /**
   * The page cannot start.
   * @param {Problem} problem
   * @returns {Promise<void>} Resolves when the user tries again.
   */
  blocked(problem) {
    return new Promise((resolve) => {
      this.#instead = { problem, actions: [{ label: "Try again", run: resolve, primary: true }] };
      this.#render();
    });
  }

  /**
   * The browser asks the user for permission.
   * @param {string} text
   */
  prompting(text) {
    this.#instead = { prompt: text };
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
    if (event.state === "waiting" || event.state === "ended") this.#clearNotice();
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

  /** @param {Report | null} report The report to show when the session has ended. */
  keepReport(report) {
    this.#report = report?.received ? [reportTable(report)] : [];
  }

  /**
   * Shows a message for a few seconds: something is degraded, restored or was not done.
   * @param {string} text
   * @param {"source" | "session"} [of]
   */
  notice(text, of = "session") {
    this.#notice = text;
    this.#noticeOf = of;
    clearTimeout(this.#noticeEnds);
    this.#noticeEnds = setTimeout(() => this.#clearNotice(), NOTICE_MS);
    this.#render();
  }

  #clearNotice() {
    clearTimeout(this.#noticeEnds);
    this.#notice = "";
    this.#render();
  }

  // --- what the page shows ---

  /** Renders the whole state; every change calls it. */
  #render() {
    const view = this.#view();
    const { state, why, retryAt } = this.#session;
    this.#showStatus(...(view?.status ?? this.#sessionStatus()));
    if (view) this.#card.show(view);
    else this.#card.hide();
    this.#tick = view?.tick;
    if (!view && state === "stalled") this.#tick = () => this.#showStatus(...this.#sessionStatus());
    if (!view && state === "waiting") this.#tick = () => this.#showBanner(why ?? "", retryAt);
    else this.#showBanner(view ? "" : this.#notice, null);
    this.#tick?.();
  }

  /** @returns {View | null} Null: no card covers the image. */
  #view() {
    const { state } = this.#session;
    if (this.#instead && "problem" in this.#instead) {
      const { problem, actions } = this.#instead;
      return { ...problem, status: ["Not connected", "problem"], tone: "problem", actions };
    }
    if (this.#instead) {
      return { title: "One moment", text: this.#instead.prompt, status: this.#sessionStatus(), tone: "wait" };
    }
    if (state === "idle") return this.#idle();
    if (state === "queued" && this.#place) return this.#queue(this.#place);
    if (state === "starting") return this.#starting();
    return state === "ended" ? this.#ended() : null;
  }

  /** @returns {Status} */
  #sessionStatus() {
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
      status: ["Not connected", "idle"],
      title: "See what the service sees",
      text: `The page sends frames to ${this.#service} and nowhere else. The service keeps none of them.`,
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
  #queue({ queued: { position }, until }) {
    return {
      status: [`Waiting room, number ${position}`, "wait"],
      title: position === 1 ? "You are next" : `Number ${position} in the queue`,
      text: "",
      tone: "wait",
      actions: [{ label: "Leave", run: () => this.onleave() }],
      tick: () => {
        let when = "";
        if (until !== null) {
          const left = (until - performance.now()) / 1000;
          when = left > 0 ? ` This takes ${duration(left)}, estimated from earlier sessions.` : " This should happen soon.";
        }
        this.#card.setText(`All sessions are in use. Yours starts automatically; keep this page open.${when}`);
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
      status: ["Starting the service …", "wait"],
      title: "The service is starting",
      text: "",
      tone: "wait",
      body: [bar],
      actions: [{ label: "Cancel", run: () => this.onleave() }],
      tick: () => {
        const passed = (performance.now() - since) / 1000;
        if (until !== null) bar.value = Math.min(passed, bar.max * 0.98);
        let when = `${Math.round(passed)} s so far.`;
        if (until !== null) {
          const left = (until - performance.now()) / 1000;
          when = left > 0 ? `About ${duration(left).replace("about ", "")} to go.` : "Any moment now.";
        }
        const stopping = starting?.state === "stopping";
        const what = stopping ? "It is being switched off and starts again after that." : "It was switched off.";
        this.#card.setText([what, when, starting?.message].filter(Boolean).join(" "));
      },
    };
  }

  /** @returns {View} */
  #ended() {
    const { reason, why } = this.#session;
    const refused = reason === "unauthorized" || reason === "start_refused";
    return {
      status: refused ? ["Not connected", "problem"] : ["Ended", "idle"],
      title: (reason && ENDED[reason]) || "The session has ended",
      text: why ?? "",
      tone: refused ? "problem" : "calm",
      body: this.#report,
      actions: [{ label: "Start again", run: () => this.onagain(), primary: true }],
    };
  }

  /**
   * @param {string} text Empty hides the banner.
   * @param {number | null} retryAt
   */
  #showBanner(text, retryAt) {
    const waiting = this.#session.state === "waiting" && text !== "";
    const [what, when] = within(this.#banner, "p", HTMLParagraphElement).children;
    const left = retryAt === null ? 0 : Math.max(0, Math.ceil((retryAt - performance.now()) / 1000));
    setText(what, text);
    setText(when, retryAt === null ? "" : `Connecting again in ${left} s.`);
    this.#retry.hidden = !waiting;
    this.#banner.hidden = !text;
  }

  /** @param {Status} status */
  #showStatus(...[text, tone, counting = ""]) {
    const [what, count] = within(this.#statusLine, "span", HTMLSpanElement).children;
    setText(what, text);
    setText(count, counting);
    this.#statusLine.dataset.tone = tone;
    document.body.dataset.tone = tone;
  }
}

/**
 * Whole seconds since a time.
 * @param {number | null} since
 */
function wholeSeconds(since) {
  return since === null ? 0 : Math.floor((performance.now() - since + 50) / 1000);
}

// --- the card ---

/** The card over the image: shows the state and what the user can do about it. */
class Card {
  #root;
  #title = make("h2", { tabIndex: -1 });
  #text = make("p");
  #key = "";
  /** @type {Node[]} */
  #body = [];
  /** @type {HTMLButtonElement[]} */
  #buttons = [];
  #after;

  /**
   * @param {HTMLElement} root
   * @param {HTMLElement} after Gets the focus when a card with the focus is hidden.
   */
  constructor(root, after) {
    this.#root = root;
    focusWhenScrolling(root);
    this.#after = after;
  }

  get shown() {
    return !this.#root.hidden;
  }

  /**
   * Shows a card. The focus stays where only its text differs from the card before.
   * @param {Content} content
   */
  show({ title, text, tone = "calm", actions = [], body = [] }) {
    const key = JSON.stringify([title, tone, actions.map(({ label }) => label)]);
    this.#title.textContent = title;
    this.#text.textContent = text;
    this.#root.dataset.tone = tone;
    const same = body.length === this.#body.length && body.every((node, index) => node === this.#body[index]);
    if (key === this.#key && same && this.shown) {
      // Only the text or the effect of a button changed, so that the focus stays.
      actions.forEach(({ run }, index) => (this.#buttons[index].onclick = run));
      return;
    }
    this.#key = key;
    this.#body = body;
    this.#root.role = tone === "problem" ? "alert" : null;
    const hadFocus = this.#root.contains(document.activeElement);
    this.#buttons = actions.map(({ label, run, primary }) => {
      const button = make("button", { className: primary ? "primary" : "", textContent: label });
      button.onclick = run;
      return button;
    });
    const buttons = this.#buttons;
    const row = make("div", { className: "actions" }, ...buttons);
    const inner = make("div", { className: "inner" }, this.#title, this.#text, ...body);
    if (buttons.length) inner.append(row);
    this.#root.replaceChildren(inner);
    this.#root.hidden = false;
    // A user of the keyboard continues here after the card was replaced or the button with the focus was disabled.
    const main = buttons.find((_, index) => actions[index].primary);
    if (hadFocus) (main ?? buttons[0] ?? this.#title).focus();
    else if (main && tone !== "start" && nothingFocused()) main.focus({ preventScroll: true });
  }

  /**
   * Changes the text of the shown card.
   * @param {string} text
   */
  setText(text) {
    setText(this.#text, text);
  }

  hide() {
    if (this.#root.contains(document.activeElement)) this.#after.focus();
    this.#root.hidden = true;
    this.#key = "";
  }
}

/** Whether no enabled element has the focus. */
function nothingFocused() {
  const at = document.activeElement;
  return !at || at === document.body || at.matches(":disabled");
}

// --- the report ---

/**
 * A session's report as a table.
 * @param {Report} report
 */
function reportTable({ received, processed, dropped, failed, bytes: size, duration_s, stages }) {
  const reasons = Object.entries(dropped).map(([reason, count]) => `${reason.replaceAll("_", " ")} ${count}`);
  const list = make("dl", { className: "rows" });
  const total = stages.total;
  /** @type {[string, string][]} */
  const rows = [
    ["Lasted", duration(duration_s)],
    ["Frames", `${received}, ${bytes(size)}`],
    ["Analysed", String(processed)],
    ["Dropped", reasons.join(", ") || "none"],
  ];
  if (failed) rows.push(["Failed", String(failed)]);
  if (total) rows.push(["A frame took", `${total.p50_ms.toFixed(0)} ms, p95 ${total.p95_ms.toFixed(0)} ms`]);
  fillRows(list, rows);
  return list;
}
