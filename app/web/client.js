// The client of the live protocol for browsers. It uses no DOM and needs no build, so that other pages can copy it.
//
//   const client = new SightlineClient();
//   client.on("result", ({ result }) => console.log(result.objects));
//   client.on("wantsFrame", () => grab().then((jpeg) => client.sendFrame(jpeg)));
//   client.connect({ url: "https://sight.example" });

import { Connection, refusal, retryDelay } from "./connection.js";
import { InstanceStart, StartRefused } from "./instance-starter.js";
import { PROTOCOL_VERSION, packFrame, socketUrl } from "./protocol.js";

/** @import { StartAnswer } from "./instance-starter.js" */
/**
 * @import { Bye, Notice, Queued, Ready, Refusal, Report, Result, ServerMessage, Settings, SettingsInForce, Summary }
 *   from "./protocol.js"
 */

/**
 * @typedef {"idle" | "starting" | "connecting" | "queued" | "live" | "stalled" | "waiting" | "stopping" | "ended"} State
 *   `stalled`: the session is live, but the service has not answered a frame for three seconds. `stopping`: the client
 *   has sent `stop` and the service has not sent `bye` yet. `connect` may be called in every state.
 */
/**
 * @typedef {object} Events What each event carries in `detail`. Times are on the clock of `performance.now()`.
 * @property {{state: State, previous: State, reason: string | null, why: string | null, retryAt: number | null,
 *   silentSince: number | null}} state `reason` is a code and `why` the same as a sentence; both come with `waiting` and
 *   `ended`. `retryAt` comes with `waiting`: the time of the next attempt, or null where only `resume` or `retryNow`
 *   starts one. `silentSince` comes with `stalled`: the time of the last answer, or of the frame that has none.
 * @property {StartAnswer & {since: number}} starting
 * @property {Queued} queued
 * @property {Ready} ready
 * @property {{free: number}} wantsFrame
 * @property {{result: Result, frame: SentFrame | null, receivedAt: number, roundTripMs: number | null,
 *   ageMs: number | null}} result `ageMs` is the time from capture to arrival here, by this machine's clock alone.
 * @property {SettingsInForce} settings The settings in force. The event comes once the service has answered every
 *   `update`, because an answer to an earlier one does not show what was asked for since.
 * @property {Summary} summary
 * @property {Notice} notice
 * @property {Refusal} refused
 * @property {{reason: string, text: string, report: Report, again: boolean}} bye `again`: the client connects again.
 */
/**
 * @typedef {object} ConnectOptions
 * @property {string} url Address of the service, `https://host`.
 * @property {string} [token] One of the service's AUTH_TOKENS, where it asks for one.
 * @property {Settings} [settings]
 * @property {"realtime" | "lossless"} [mode]
 * @property {{url: string, token?: string}} [startServer] The function that starts a service that is switched off.
 */
/**
 * @typedef {object} SentFrame
 * @property {number} seq
 * @property {number} capturedAt On the clock of `performance.now()`, as is `sentAt`.
 * @property {number} sentAt
 * @property {number} bytes
 */
/** @typedef {Settings & {mode?: string}} InitSettings */

/** After these reasons a new connection would end the same way, or the user does not want one. */
const FINAL = new Set(["stopped", "unauthorized", "protocol_error"]);
const STOP_MS = 3_000;
const PROBE_MS = 3_000;
const STALL_MS = 3_000; // without an answer: the session exists, but the page must not present it as live

/** @type {Record<string, string>} */
const BYE_TEXTS = {
  stopped: "The session was stopped.",
  idle: "No frames came for a while, so the service gave the session’s slot to someone else.",
  max_session: "The session reached the longest duration that the service allows.",
  slow_reader: "This page read too slowly: its connection or its machine could not keep up.",
  unauthorized: "Enter a token that opens this service under Access, then start again.",
  shutdown: "The service is shutting down.",
  protocol_error: "The service and this page do not understand each other. Reload the page; it may be an old version.",
  inference_unavailable: "The models cannot be reached.",
  rejected: "The service accepts no further session at the moment.",
};

/**
 * A session with the service that survives lost connections. The caller sends a JPEG whenever `wantsFrame` fires and receives
 * results and states as events (see `Events`).
 */
export class SightlineClient extends EventTarget {
  /** @type {State} */
  #state = "idle";
  /** @type {ConnectOptions | null} */
  #options = null;
  #patch = new SettingsPatch();
  /** @type {Connection | null} */
  #connection = null;
  #inFlight = new InFlight();
  #seq = 0;
  #attempt = 0;
  #paused = false;
  /** Whether `init` was sent on this connection. */
  #begun = false;
  /** @type {Bye | null} */
  #bye = null;
  /**
   * The timer of the current wait: for the next attempt to connect, or for `bye` after `stop`.
   * @type {ReturnType<typeof setTimeout> | null}
   */
  #timer = null;
  /** @type {InstanceStart | null} */
  #starting = null;
  /** The time of the last answer to a frame, or of the last `resume`. */
  #answeredAt = 0;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #stallTimer;

  get state() {
    return this.#state;
  }

  /** Whether a frame may be sent now. */
  get wantsFrame() {
    return this.#serving && !this.#paused && this.#inFlight.free > 0;
  }

  /** Whether a session is running; a stalled one is. */
  get #serving() {
    return this.#state === "live" || this.#state === "stalled";
  }

  /** Whether the service has answered every change of settings. */
  get settled() {
    return this.#patch.settled;
  }

  get paused() {
    return this.#paused;
  }

  /** `seq` of the latest frame sent, 0 before the first. A later `result` with at most this `seq` is of a frame sent before now. */
  get lastSeq() {
    return this.#seq;
  }

  /**
   * Adds a listener; returns the function that removes it.
   * @template {keyof Events} K
   * @param {K} type
   * @param {(detail: Events[K]) => void} listener
   */
  on(type, listener) {
    const wrapped = (/** @type {Event} */ event) => listener(/** @type {CustomEvent<Events[K]>} */ (event).detail);
    this.addEventListener(type, wrapped);
    return () => this.removeEventListener(type, wrapped);
  }

  /** Resolves as soon as a frame may be sent: `for (;;) { await client.frameWanted(); client.sendFrame(await grab()); }` */
  frameWanted() {
    if (this.wantsFrame) return Promise.resolve();
    return new Promise((resolve) => this.addEventListener("wantsFrame", () => resolve(undefined), { once: true }));
  }

  /**
   * Opens a session and opens another whenever the connection is lost, until `stop` or until the service ends the session
   * for a reason that a new connection cannot change.
   * @param {ConnectOptions} options
   */
  connect(options) {
    this.#drop();
    this.#options = options;
    this.#patch = new SettingsPatch({ ...options.settings, ...(options.mode && { mode: options.mode }) });
    this.#attempt = 0;
    this.#starting = null;
    this.#open();
  }

  /**
   * Sends a frame. Without a credit the client drops it, because the next frame will be newer.
   * @param {Uint8Array} jpeg
   * @param {{capturedAt?: number}} [options] `capturedAt` is on the clock of `performance.now()`.
   * @returns {number | null} The frame's `seq`; null when the client dropped it.
   */
  sendFrame(jpeg, { capturedAt = performance.now() } = {}) {
    if (!this.wantsFrame) return null;
    const seq = ++this.#seq;
    this.#inFlight.sent({ seq, capturedAt, sentAt: performance.now(), bytes: jpeg.byteLength });
    this.#connection?.sendFrame(packFrame(jpeg, seq, performance.timeOrigin + capturedAt));
    if (this.#state === "live") this.#expectAnswer();
    return seq;
  }

  /**
   * Changes settings from the next frame on, also for later connections. The event `settings` shows the outcome, also when
   * the service refuses the change.
   * @param {Settings} patch
   */
  update(patch) {
    this.#sendUpdate(this.#patch.change(patch, this.#serving));
  }

  /** For a hidden page: the client wants no frames, and the service keeps the slot for a while. */
  pause() {
    if (this.#paused) return;
    this.#paused = true;
    if (this.#begun && this.#state !== "stopping") this.#send({ type: "pause" });
    this.#expectAnswer();
  }

  /** Ends the pause. Where the session was lost meanwhile, the client connects again at once. */
  resume() {
    if (!this.#paused) return;
    this.#paused = false;
    this.#answeredAt = performance.now(); // the pause does not count as waiting for an answer
    this.#expectAnswer();
    if (this.#begun && this.#state !== "stopping") this.#send({ type: "resume" });
    if (this.#state === "waiting" && this.#timer === null) this.retryNow();
    this.#announceCredit();
  }

  /** Ends the session: the service answers the frames in flight, then sends `bye`. Without a session this does nothing. */
  stop() {
    if (this.#state === "idle" || this.#state === "stopping" || this.#state === "ended") return;
    if (!this.#begun) return this.#end("stopped");
    this.#send({ type: "stop" });
    this.#schedule(STOP_MS, () => this.#end("stopped"));
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
    this.#send({ type: "init", protocol: PROTOCOL_VERSION, token, ...this.#patch.begin() });
    if (this.#paused) this.#send({ type: "pause" });
  }

  /** Drops the connection in whatever state it is, without an event. */
  #drop() {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
    this.#connection?.close();
    this.#connection = null;
    this.#begun = false;
    this.#inFlight = new InFlight();
    clearTimeout(this.#stallTimer);
  }

  /**
   * Decides what follows a lost connection: the end, the start of the machine, or another attempt after a wait.
   * @param {boolean} opened Whether the connection was ever open.
   * @param {string} why
   */
  #lost(opened, why) {
    const bye = this.#bye;
    this.#drop();
    if (this.#state === "stopping" || (bye && FINAL.has(bye.reason))) return this.#end(bye?.reason ?? "stopped");
    if (!opened && (!this.#options?.startServer || this.#starting?.running)) void this.#explainRefusal();
    if (!opened && this.#options?.startServer) return void this.#start(this.#options.startServer);
    this.#starting = null;
    const fallback = opened ? "The connection was lost." : "The service cannot be reached.";
    const text = bye ? byeText(bye.reason, bye.message) : why || fallback;
    const reason = bye?.reason ?? (opened ? "lost" : "unreachable");
    if (this.#paused) return this.#enter("waiting", { reason, why: text });
    const delay = retryDelay(this.#attempt++, bye?.retry_after_s);
    this.#schedule(delay, () => this.#open());
    this.#enter("waiting", { reason, why: text, retryAt: performance.now() + delay });
  }

  /**
   * Asks the service why it refuses the connection. A service with an answer is running, so that the client stops waiting for
   * its start and shows the reason, because the user can act on that.
   */
  async #explainRefusal() {
    const options = this.#options;
    const why = options && (await refusal(socketUrl(this.#starting?.url ?? options.url)));
    if (!why || options !== this.#options || this.#connection) return; // or another attempt has begun
    if (this.#state !== "waiting" && this.#state !== "starting") return;
    this.#starting = null;
    const detail = { reason: "refused", why: `The service refuses the connection: ${why}.` };
    if (this.#paused) return this.#enter("waiting", detail);
    const delay = retryDelay(this.#attempt++);
    this.#schedule(delay, () => this.#open());
    this.#enter("waiting", { ...detail, retryAt: performance.now() + delay });
  }

  /**
   * Asks `start-server` to start the service, and tries to connect every few seconds until its models are loaded.
   * @param {{url: string, token?: string}} startServer
   */
  async #start(startServer) {
    if (!this.#starting) {
      this.#starting = new InstanceStart(startServer, this.#options?.url ?? "");
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
      if (!error.temporary) return this.#end("start_refused", error.message);
      this.#emit("starting", { state: "unknown", etaS: null, url: null, message: error.message, since: current.since });
    }
    if (this.#connection) return; // `retryNow` was called meanwhile
    this.#schedule(PROBE_MS * (0.75 + Math.random() / 2), () => this.#open());
  }

  /**
   * @param {string} reason
   * @param {string | null} [why]
   */
  #end(reason, why = null) {
    const bye = this.#bye;
    this.#drop();
    this.#starting = null;
    this.#enter("ended", { reason, why: why ?? byeText(bye?.reason ?? reason, bye?.message) });
  }

  // --- messages of the service ---

  /** @param {ServerMessage} message */
  #receive(message) {
    if (message.type === "result") this.#result(message);
    else if (message.type === "ping") this.#send({ type: "pong", t: message.t });
    else if (message.type === "ready") this.#ready(message);
    else if (message.type === "queued") this.#queued(message);
    else if (message.type === "settings") this.#updated(message.settings);
    else if (message.type === "error") this.#refused(message);
    else if (message.type === "bye") {
      this.#bye = message;
      const text = byeText(message.reason, message.message);
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
    this.#inFlight = new InFlight(message.credits);
    this.#enter("live");
    this.#sendUpdate(this.#patch.ready(message.settings));
    this.#emit("ready", message);
    this.#announceCredit();
  }

  /** @param {SettingsInForce | null} settings Null: the service refused the `update`. */
  #updated(settings) {
    const inForce = this.#patch.answered(settings);
    if (inForce) this.#emit("settings", inForce);
  }

  /** @param {Result} result */
  #result(result) {
    const receivedAt = performance.now();
    const frame = this.#inFlight.answered(result.seq);
    const roundTripMs = frame && receivedAt - frame.sentAt;
    const ageMs = frame && receivedAt - frame.capturedAt;
    this.#answered(receivedAt);
    this.#emit("result", { result, frame, receivedAt, roundTripMs, ageMs });
    this.#announceCredit();
  }

  /** @param {Refusal} message */
  #refused(message) {
    this.#emit("refused", message);
    if (message.seq !== null) {
      this.#inFlight.refused(message.seq);
      this.#answered(performance.now());
    } else if (this.#serving) this.#updated(null);
    else if (this.#state === "connecting" || this.#state === "starting") this.#initRefused(message);
    this.#announceCredit();
  }

  /**
   * A service with another model may not know the chosen classes, and one of another operator not the chosen prompt. A
   * session without that setting is better than none, so the client asks again without it.
   * @param {Refusal} message
   */
  #initRefused({ field, message }) {
    if (this.#patch.withdraw(field)) this.#init();
    else this.#end("protocol_error", byeText("protocol_error", message));
  }

  // --- detection of a stalled session ---

  /** @param {number} now */
  #answered(now) {
    this.#answeredAt = now;
    this.#expectAnswer();
  }

  /** Called when a frame was sent, answered or refused. Restarts the stall timer, or stops it when no frame is in flight. */
  #expectAnswer() {
    clearTimeout(this.#stallTimer);
    if (!this.#serving) return;
    const sentAt = this.#paused ? null : this.#inFlight.waitingSince;
    if (sentAt === null) return this.#enter("live");
    const silentSince = Math.max(sentAt, this.#answeredAt);
    const left = silentSince + STALL_MS - performance.now();
    if (left <= 0) return this.#enter("stalled", { silentSince });
    this.#enter("live");
    this.#stallTimer = setTimeout(() => this.#enter("stalled", { silentSince }), Math.ceil(left));
  }

  // --- helpers ---

  #announceCredit() {
    if (this.wantsFrame) this.#emit("wantsFrame", { free: this.#inFlight.free });
  }

  /** @param {object} message */
  #send(message) {
    this.#connection?.sendMessage(message);
  }

  /** @param {Settings | null} patch */
  #sendUpdate(patch) {
    if (patch) this.#send({ type: "update", ...patch });
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
  #schedule(ms, then) {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.#timer = null;
      then();
    }, ms);
  }
}

/**
 * Why a session ended, as a sentence.
 * @param {string} reason
 * @param {string | null} [message] The service's own explanation.
 */
function byeText(reason, message) {
  const text = BYE_TEXTS[reason] ?? `The service ended the session: ${reason}.`;
  return message && reason !== "unauthorized" ? `${text} (${message})` : text;
}

/**
 * The frames in flight, and thereby the credits that are left. A result acknowledges its frame and every earlier one; a
 * refusal acknowledges its frame alone.
 */
class InFlight {
  /** @type {Map<number, SentFrame>} */
  #frames = new Map();

  /** @param {number} credits Frames that may be in flight at once. */
  constructor(credits = 0) {
    this.credits = credits;
  }

  /** Number of frames that may be sent now. */
  get free() {
    return Math.max(0, this.credits - this.#frames.size);
  }

  /**
   * When the oldest frame in flight was sent; null when the service has answered every frame.
   * @returns {number | null}
   */
  get waitingSince() {
    for (const { sentAt } of this.#frames.values()) return sentAt;
    return null;
  }

  /** @param {SentFrame} frame */
  sent(frame) {
    this.#frames.set(frame.seq, frame);
  }

  /**
   * Handles a result. Earlier frames were superseded, so that no answer to them follows.
   * @param {number} seq
   * @returns {SentFrame | null} The answered frame; null where that is not in flight.
   */
  answered(seq) {
    const frame = this.#frames.get(seq) ?? null;
    for (const earlier of this.#frames.keys()) if (earlier <= seq) this.#frames.delete(earlier);
    return frame;
  }

  /**
   * Handles an error. A frame that is refused on arrival is refused before earlier frames are answered.
   * @param {number} seq
   */
  refused(seq) {
    this.#frames.delete(seq);
  }
}

/** All changes of settings as one patch, with the number of unanswered updates and the settings in force. */
class SettingsPatch {
  #wanted;
  /**
   * Changes made after `init` and before `ready`. They wait for `ready`, because an `update` sent earlier could cross the
   * refusal of `init`.
   * @type {Settings | null}
   */
  #late = null;
  #unanswered = 0;
  /** @type {SettingsInForce | null} */
  #inForce = null;

  /** @param {InitSettings} [wanted] */
  constructor(wanted = {}) {
    this.#wanted = wanted;
  }

  /** Whether the service has answered every change. */
  get settled() {
    return !this.#unanswered;
  }

  /**
   * Begins a connection.
   * @returns {InitSettings} The settings for its `init`.
   */
  begin() {
    this.#late = null;
    this.#unanswered = 0;
    return this.#wanted;
  }

  /**
   * @param {Settings} patch
   * @param {boolean} live Whether an `update` may be sent.
   * @returns {Settings | null} The `update` to send now.
   */
  change(patch, live) {
    this.#wanted = merged(this.#wanted, patch);
    if (!live) this.#late = merged(this.#late ?? {}, patch);
    return live ? this.#count(patch) : null;
  }

  /**
   * @param {SettingsInForce} settings
   * @returns {Settings | null} The `update` to send now.
   */
  ready(settings) {
    this.#inForce = settings;
    const late = this.#late;
    this.#late = null;
    return late && this.#count(late);
  }

  /**
   * Handles the answer to an `update`.
   * @param {SettingsInForce | null} settings Null: the service refused it, and the settings in force stay.
   * @returns {SettingsInForce | null} The settings in force; null while later changes are unanswered, because the settings
   *   do not include those yet.
   */
  answered(settings) {
    this.#inForce = settings ?? this.#inForce;
    this.#unanswered = Math.max(0, this.#unanswered - 1);
    return this.settled ? this.#inForce : null;
  }

  /**
   * Removes a setting that the service refused in `init`.
   * @param {string | null} field As named by the service's `error`.
   * @returns {boolean} Whether there was such a setting; if not, the service would refuse a new `init`, too.
   */
  withdraw(field) {
    const others = field === null ? null : without(this.#wanted, field);
    if (others) this.#wanted = others;
    return others !== null;
  }

  /** @param {Settings} patch */
  #count(patch) {
    this.#unanswered += 1;
    return patch;
  }
}

/**
 * @template {Settings} T
 * @param {T} settings
 * @param {Settings} patch
 * @returns {T}
 */
function merged(settings, patch) {
  return { ...settings, ...patch, stages: { ...settings.stages, ...patch.stages } };
}

/**
 * @template {object} T
 * @param {T} settings
 * @param {string} field `confidence`; `classes.0`, which removes all classes; `stages.NAME`, which removes that stage.
 * @returns {T | null} Null when there is no such setting.
 */
function without(settings, field) {
  const [name, inner] = field.split(".");
  const { [name]: refused, ...others } = /** @type {Record<string, unknown>} */ (settings);
  if (refused === undefined) return null;
  if (name !== "stages" || !inner) return /** @type {T} */ (others);
  const stages = without(/** @type {object} */ (refused), inner);
  return stages && /** @type {T} */ ({ ...others, stages });
}
