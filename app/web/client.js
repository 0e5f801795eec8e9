// The live protocol in a browser, ready to be taken into another page: no DOM, nothing to build.
//
//   const client = new SightlineClient();
//   client.on("result", ({ result }) => console.log(result.objects));
//   client.on("wantsFrame", () => grab().then((jpeg) => client.sendFrame(jpeg)));
//   client.connect({ url: "https://sight.example" });

import { retryDelay } from "./backoff.js";
import { Connection, refusal } from "./connection.js";
import { Flight } from "./flight.js";
import { PROTOCOL_VERSION, packFrame, socketUrl } from "./protocol.js";
import { Start, StartRefused } from "./starter.js";
import { Wishes } from "./wishes.js";
import { byeWords } from "./words.js";

/** @import { ConnectOptions, Events, State } from "./events.js" */
/** @import { Bye, Queued, Ready, Refusal, Result, ServerMessage, Settings, SettingsInForce } from "./protocol.js" */

/** After these a new connection would end the same way, or nobody wants one. */
const FINAL = new Set(["stopped", "unauthorized", "protocol_error"]);
const STOP_MS = 3_000;
const PROBE_MS = 3_000;
const STALL_MS = 3_000; // without an answer: the session is there, but nobody should take it for live

export class SightlineClient extends EventTarget {
  /** @type {State} */
  #state = "idle";
  /** @type {ConnectOptions | null} */
  #options = null;
  #wishes = new Wishes();
  /** @type {Connection | null} */
  #connection = null;
  #flight = new Flight();
  #seq = 0;
  #attempt = 0;
  #paused = false;
  /** `init` was sent on this connection. */
  #begun = false;
  /** @type {Bye | null} */
  #bye = null;
  /**
   * The end of a wait: for the next attempt, or for the last `bye`.
   * @type {ReturnType<typeof setTimeout> | null}
   */
  #timer = null;
  /** @type {Start | null} */
  #starting = null;
  /** When the last answer to a frame came, or frames were wanted again. */
  #answeredAt = 0;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #stallTimer;

  get state() {
    return this.#state;
  }

  /** Whether a frame may be sent now. */
  get wantsFrame() {
    return this.#serving && !this.#paused && this.#flight.free > 0;
  }

  /** There is a session, however it goes. */
  get #serving() {
    return this.#state === "live" || this.#state === "stalled";
  }

  /** Whether every change of settings was answered. */
  get settled() {
    return this.#wishes.settled;
  }

  get paused() {
    return this.#paused;
  }

  /** Of the latest frame that was sent, 0 before the first: every `result` still to come for older ones is not above it. */
  get lastSeq() {
    return this.#seq;
  }

  /**
   * Listens; returns what ends it.
   * @template {keyof Events} K
   * @param {K} type
   * @param {(detail: Events[K]) => void} listener
   */
  on(type, listener) {
    const wrapped = (/** @type {Event} */ event) => listener(/** @type {CustomEvent<Events[K]>} */ (event).detail);
    this.addEventListener(type, wrapped);
    return () => this.removeEventListener(type, wrapped);
  }

  /** Resolves when a frame may be sent: `for (;;) { await client.frameWanted(); client.sendFrame(await grab()); }` */
  frameWanted() {
    if (this.wantsFrame) return Promise.resolve();
    return new Promise((resolve) => this.addEventListener("wantsFrame", () => resolve(undefined), { once: true }));
  }

  /**
   * Opens a session and keeps one open until `stop`, or until the service says that there is no use.
   * @param {ConnectOptions} options
   */
  connect(options) {
    this.#drop();
    this.#options = options;
    this.#wishes = new Wishes({ ...options.settings, ...(options.mode && { mode: options.mode }) });
    this.#attempt = 0;
    this.#starting = null;
    this.#open();
  }

  /**
   * Sends a frame. Without a credit it is not sent: the next one will be newer.
   * @param {Uint8Array} jpeg
   * @param {{capturedAt?: number}} [options] On the clock of `performance.now()`.
   * @returns {number | null} The frame's `seq`; null when it was not sent.
   */
  sendFrame(jpeg, { capturedAt = performance.now() } = {}) {
    if (!this.wantsFrame) return null;
    const seq = ++this.#seq;
    this.#flight.sent({ seq, capturedAt, sentAt: performance.now(), bytes: jpeg.byteLength });
    this.#connection?.send(packFrame(jpeg, seq, performance.timeOrigin + capturedAt));
    if (this.#state === "live") this.#expectAnswer();
    return seq;
  }

  /**
   * Changes settings from the next frame on, also over later connections. Answered by `settings`, also when it is
   * refused.
   * @param {Settings} patch
   */
  update(patch) {
    this.#sayUpdate(this.#wishes.change(patch, this.#serving));
  }

  /** For a hidden page: no frames are wanted, the slot stays for a while. */
  pause() {
    if (this.#paused) return;
    this.#paused = true;
    if (this.#begun && this.#state !== "stopping") this.#say({ type: "pause" });
    this.#expectAnswer();
  }

  resume() {
    if (!this.#paused) return;
    this.#paused = false;
    this.#answeredAt = performance.now(); // nobody waited meanwhile
    this.#expectAnswer();
    if (this.#begun && this.#state !== "stopping") this.#say({ type: "resume" });
    if (this.#state === "waiting" && this.#timer === null) this.retryNow();
    this.#want();
  }

  /** Ends the session: what is in flight is answered, then comes `bye`. Without a session it does nothing. */
  stop() {
    if (this.#state === "idle" || this.#state === "stopping" || this.#state === "ended") return;
    if (!this.#begun) return this.#finish("stopped");
    this.#say({ type: "stop" });
    this.#after(STOP_MS, () => this.#finish("stopped"));
    this.#enter("stopping");
  }

  /** Connects at once instead of at the end of the wait. */
  retryNow() {
    if (this.#state === "waiting" || this.#state === "starting") this.#open();
  }

  // --- the connection ---

  #open() {
    const options = this.#options;
    if (!options) return;
    this.#drop();
    this.#bye = null;
    if (!this.#starting) this.#enter("connecting");
    this.#connection = new Connection(socketUrl(this.#starting?.url ?? options.url), {
      open: () => this.#init(),
      message: (message) => this.#receive(message),
      lost: (opened, why) => this.#lost(opened, why),
    });
  }

  #init() {
    this.#begun = true;
    const token = this.#options?.token || undefined;
    this.#say({ type: "init", protocol: PROTOCOL_VERSION, token, ...this.#wishes.begin() });
    if (this.#paused) this.#say({ type: "pause" });
  }

  /** Lets go of the connection, whatever it is doing. */
  #drop() {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
    this.#connection?.close();
    this.#connection = null;
    this.#begun = false;
    this.#flight = new Flight();
    clearTimeout(this.#stallTimer);
  }

  /**
   * @param {boolean} opened
   * @param {string} why
   */
  #lost(opened, why) {
    const bye = this.#bye;
    this.#drop();
    if (this.#state === "stopping" || (bye && FINAL.has(bye.reason))) return this.#finish(bye?.reason ?? "stopped");
    if (!opened && (!this.#options?.startServer || this.#starting?.running)) void this.#learnWhy();
    if (!opened && this.#options?.startServer) return void this.#start(this.#options.startServer);
    this.#starting = null;
    const cut = opened ? "The connection was lost." : "The service cannot be reached.";
    const words = bye ? byeWords(bye.reason, bye.message) : why || cut;
    const reason = bye?.reason ?? (opened ? "lost" : "unreachable");
    if (this.#paused) return this.#enter("waiting", { reason, why: words });
    const delay = retryDelay(this.#attempt++, bye?.retry_after_s);
    this.#after(delay, () => this.#open());
    this.#enter("waiting", { reason, why: words, retryAt: performance.now() + delay });
  }

  /** A service that refuses is there: it is waited for no longer, and what it says is what somebody can do about it. */
  async #learnWhy() {
    const options = this.#options;
    const why = options && (await refusal(socketUrl(this.#starting?.url ?? options.url)));
    if (!why || options !== this.#options || this.#connection) return; // or somebody tries again
    if (this.#state !== "waiting" && this.#state !== "starting") return;
    this.#starting = null;
    const detail = { reason: "refused", why: `The service refuses the connection: ${why}.` };
    if (this.#paused) return this.#enter("waiting", detail);
    const delay = retryDelay(this.#attempt++);
    this.#after(delay, () => this.#open());
    this.#enter("waiting", { ...detail, retryAt: performance.now() + delay });
  }

  /**
   * Has the service started, and tries the door every few seconds: it opens once the models are there.
   * @param {{url: string, token?: string}} starter
   */
  async #start(starter) {
    if (!this.#starting) {
      this.#starting = new Start(starter, this.#options?.url ?? "");
      this.#enter("starting");
    }
    const current = this.#starting;
    const over = () => current !== this.#starting || this.#state !== "starting";
    try {
      const answer = await current.ask();
      if (over()) return;
      this.#emit("starting", { ...answer, since: current.since });
    } catch (error) {
      if (over()) return;
      if (!(error instanceof StartRefused)) throw error;
      if (!error.passing) return this.#finish("start_refused", error.message);
      this.#emit("starting", { state: "unknown", etaS: null, url: null, message: error.message, since: current.since });
    }
    if (this.#connection) return; // somebody would not wait
    this.#after(PROBE_MS * (0.75 + Math.random() / 2), () => this.#open());
  }

  /**
   * @param {string} reason
   * @param {string | null} [why]
   */
  #finish(reason, why = null) {
    const bye = this.#bye;
    this.#drop();
    this.#starting = null;
    this.#enter("ended", { reason, why: why ?? byeWords(bye?.reason ?? reason, bye?.message) });
  }

  // --- what the service says ---

  /** @param {ServerMessage} message */
  #receive(message) {
    if (message.type === "result") this.#result(message);
    else if (message.type === "ping") this.#say({ type: "pong", t: message.t });
    else if (message.type === "ready") this.#ready(message);
    else if (message.type === "queued") this.#queued(message);
    else if (message.type === "settings") this.#updated(message.settings);
    else if (message.type === "error") this.#refused(message);
    else if (message.type === "bye") {
      this.#bye = message;
      const text = byeWords(message.reason, message.message);
      const again = this.#state !== "stopping" && !FINAL.has(message.reason);
      this.#emit("bye", { reason: message.reason, text, report: message.report, again });
    } else if (message.type === "notice") this.#emit("notice", message);
    else if (message.type === "summary") this.#emit("summary", message);
  }

  /** @param {Queued} message */
  #queued(message) {
    if (this.#state === "stopping") return;
    this.#enter("queued");
    this.#emit("queued", message);
  }

  /** @param {Ready} message */
  #ready(message) {
    if (this.#state === "stopping") return;
    this.#attempt = 0;
    this.#starting = null;
    this.#flight = new Flight(message.credits);
    this.#enter("live");
    this.#sayUpdate(this.#wishes.ready(message.settings));
    this.#emit("ready", message);
    this.#want();
  }

  /** @param {SettingsInForce | null} settings Null: the `update` was refused. */
  #updated(settings) {
    const inForce = this.#wishes.answered(settings);
    if (inForce) this.#emit("settings", inForce);
  }

  /** @param {Result} result */
  #result(result) {
    const receivedAt = performance.now();
    const frame = this.#flight.answered(result.seq);
    const roundTripMs = frame && receivedAt - frame.sentAt;
    const ageMs = frame && receivedAt - frame.capturedAt;
    this.#answered(receivedAt);
    this.#emit("result", { result, frame, receivedAt, roundTripMs, ageMs });
    this.#want();
  }

  /** @param {Refusal} message */
  #refused(message) {
    this.#emit("refused", message);
    if (message.seq !== null) {
      this.#flight.refused(message.seq);
      this.#answered(performance.now());
    } else if (this.#serving) this.#updated(null);
    else if (this.#state === "connecting" || this.#state === "starting") this.#initRefused(message);
    this.#want();
  }

  /**
   * Another model may know other classes than the one that they were chosen from, another operator other prompts.
   * Rather without that wish than no session.
   * @param {Refusal} message
   */
  #initRefused({ field, message }) {
    if (this.#wishes.giveUp(field)) this.#init();
    else this.#finish("protocol_error", byeWords("protocol_error", message));
  }

  // --- whether answers come ---

  /** @param {number} now */
  #answered(now) {
    this.#answeredAt = now;
    this.#expectAnswer();
  }

  /** A frame was sent, answered or given up: the time within which an answer must come begins anew, or there is none. */
  #expectAnswer() {
    clearTimeout(this.#stallTimer);
    if (!this.#serving) return;
    const sentAt = this.#paused ? null : this.#flight.waitingSince;
    if (sentAt === null) return this.#enter("live");
    const silentSince = Math.max(sentAt, this.#answeredAt);
    const left = silentSince + STALL_MS - performance.now();
    if (left <= 0) return this.#enter("stalled", { silentSince });
    this.#enter("live");
    this.#stallTimer = setTimeout(() => this.#enter("stalled", { silentSince }), Math.ceil(left));
  }

  // --- small things ---

  #want() {
    if (this.wantsFrame) this.#emit("wantsFrame", { free: this.#flight.free });
  }

  /** @param {object} message */
  #say(message) {
    this.#connection?.say(message);
  }

  /** @param {Settings | null} patch */
  #sayUpdate(patch) {
    if (patch) this.#say({ type: "update", ...patch });
  }

  /**
   * @param {State} state
   * @param {{reason?: string | null, why?: string | null, retryAt?: number | null, silentSince?: number | null}} [detail]
   */
  #enter(state, { reason = null, why = null, retryAt = null, silentSince = null } = {}) {
    const previous = this.#state;
    if (state === previous && state !== "waiting") return;
    this.#state = state;
    this.#emit("state", { state, previous, reason, why, retryAt, silentSince });
  }

  /**
   * @template {keyof Events} K
   * @param {K} type
   * @param {Events[K]} detail
   */
  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  /**
   * @param {number} ms
   * @param {() => void} then
   */
  #after(ms, then) {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.#timer = null;
      then();
    }, ms);
  }
}
