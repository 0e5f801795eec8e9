// The page. Start reading here: this module makes the parts and connects them; no part knows more than its own job.
//
// Frames go from `source-switch.js` (which source) and `source.js` (its frames) through `sender.js` to `client.js`. Results
// come back through `tracks.js` (the scene at any moment) to `drawing.js`. `state-machine.js` shows the state of source and
// session, `hud.js` the figures, `settings.js` the controls. Which stages there are, and how each is drawn, the service says:
// `stages.js` interprets it.

import { SightlineClient } from "./client.js";
import { Overlay } from "./drawing.js";
import { element, fillRows, setText, within } from "./elements.js";
import { Hud, clearSummaries, showSummary } from "./hud.js";
import { Recorder, Results, saveStill } from "./saving.js";
import { Encoder, RateControl, Sender } from "./sender.js";
import { SettingsPanel, readQuery } from "./settings.js";
import { Player, SourceSwitch } from "./source-switch.js";
import { interpreted, modelName } from "./stages.js";
import { StateMachine } from "./state-machine.js";
import { load, store } from "./storage.js";
import { SourceChange, Tracks } from "./tracks.js";

/** @import { Models, StageDescription } from "./protocol.js" */
/** @import { Source } from "./source.js" */

const machine = new StateMachine();
const config = await readConfig(); // first, because until then the page cannot act on a press of a button
const client = new SightlineClient();
const tracks = new Tracks();
/** @type {Overlay} */
const overlay = new Overlay(element("overlay", HTMLCanvasElement), tracks);
const change = new SourceChange();
const rateControl = new RateControl();
/** @type {Sender} */
const sender = new Sender(client, new Encoder(), rateControl);
const hud = new Hud(sender, rateControl);
const asked = readQuery(location.search);
/** @type {SettingsPanel} */
const panel = new SettingsPanel(asked.settings);
const player = new Player();
const results = new Results();
/** @type {SourceSwitch} */
const sources = new SourceSwitch(machine);
/** @type {Recorder | null} */
let recorder = null;
/** @type {Source | null} */
let shown = null;
let ratio = 0;

// --- the source, and the session that follows it ---
//
// A source that is shown gets a session, or continues the one there is. While another source is being opened, a session
// without a source is paused; when none is being opened, it ends. When a session ends, its source is closed.

sources.onchange = () => {
  const { source, opening } = sources;
  if (source !== shown) show(source);
  enableButtons(Boolean(source), Boolean(source) || opening);
  if (source && ["idle", "stopping", "ended"].includes(client.state)) connect();
  if (!source && !opening) end();
  pauseOrResume();
};

/** @param {Source | null} source */
function show(source) {
  shown = source;
  ratio = 0;
  sender.attach(source);
  if (source) source.onjump = forgetResults;
  player.attach(source?.kind === "video" && source.view instanceof HTMLVideoElement ? source.view : null);
  forgetResults();
  overlay.size = () => source ?? { width: 0, height: 0 };
  if (source) overlay.start();
  else overlay.stop();
  if (source?.width) setShape(source);
}

/** Forgets what was seen so far, because the page now shows something else. */
function forgetResults() {
  sender.discardPending();
  change.mark(client.lastSeq, performance.now());
  tracks.clear();
  hud.forget();
}

/** @param {Source} source */
function setShape({ width, height }) {
  ratio = width / height;
  element("stage", HTMLDivElement).style.setProperty("--ratio", String(ratio));
}

function end() {
  client.stop();
  void record(false);
  hud.end();
}

/** The client wants frames only while the page is visible and shows a source. */
function pauseOrResume() {
  if (document.hidden || !sources.source) client.pause();
  else client.resume();
}

sender.onframe = (now) => hud.camera.tick(now);
sender.onproblem = (problem) => machine.notice(problem, "source");
overlay.ondraw = (now) => {
  hud.drawn.tick(now);
  const { source } = sources;
  if (!source?.width) return;
  if (Math.abs(source.width / source.height / ratio - 1) > 0.01) {
    forgetResults(); // a phone was rotated, or a shared window has changed its shape
    setShape(source);
  }
  if (recorder) recorder.draw(source, overlay);
};

// --- the tokens ---

const TOKENS = { token: "sightline.token", "start-token": "sightline.start-token" };
const access = element("access", HTMLDetailsElement);
for (const [id, key] of Object.entries(TOKENS)) {
  const input = element(id, HTMLInputElement);
  input.value = load("tab", key) ?? "";
  input.onchange = () => store("tab", key, input.value);
}
within(access, "form", HTMLFormElement).onsubmit = (event) => {
  event.preventDefault();
  if (client.state === "ended") void sources.again();
};

/** @param {keyof typeof TOKENS} id */
function tokenOf(id) {
  return element(id, HTMLInputElement).value || undefined;
}

// --- the session ---

function connect() {
  sender.reset();
  results.clear();
  clearSummaries();
  machine.keepReport(null);
  const startServer = config.start_server_url ? { url: config.start_server_url, token: tokenOf("start-token") } : undefined;
  client.connect({ url: config.service_url, token: tokenOf("token"), settings: panel.settings, startServer });
}

client.on("state", (event) => {
  if (event.state === "ended") sources.release();
  machine.state(event);
  if (event.state === "live") return;
  panel.observe(null);
  hud.pause();
  if (event.state === "ended") hud.end();
});
client.on("starting", (event) => machine.starting(event));
client.on("queued", (event) => machine.queued(event));
client.on("ready", (ready) => {
  rateControl.reset();
  const stages = showStages(ready.stages ?? [], ready.models);
  hud.begin(ready, stages);
  panel.begin(ready, stages);
  if (client.settled) panel.inForce(ready.settings);
  setText(element("models", HTMLParagraphElement), modelNames(ready.models));
});
client.on("settings", (settings) => panel.inForce(settings));
client.on("result", (event) => {
  const { result, frame, receivedAt, roundTripMs } = event;
  const capturedAt = frame?.capturedAt ?? receivedAt;
  const seen = change.filter(result, capturedAt);
  if (seen) tracks.observe(seen, capturedAt, receivedAt);
  results.add(result);
  hud.observe(event, seen);
  panel.observe(result);
  if (roundTripMs === null) return;
  rateControl.answered({
    now: receivedAt,
    roundTripMs,
    serverMs: result.age_ms,
    waitedMs: result.timings_ms.queue ?? 0,
    encodeMs: sender.takeEncodeMs(result.seq),
    dropped: result.dropped.since_last,
  });
});
client.on("refused", (refusal) => {
  hud.refused(refusal);
  if (refusal.seq === null) machine.notice(refusal.message);
});
client.on("notice", ({ message }) => machine.notice(message));
client.on("summary", showSummary);
client.on("bye", ({ reason, report }) => {
  machine.keepReport(report);
  if (report.summary) showSummary(report.summary);
  if (reason !== "unauthorized") return;
  access.open = true;
  element("token", HTMLInputElement).focus();
});

/** @param {Models} models */
function modelNames(models) {
  return [...new Set(Object.values(models).map(modelName).filter(Boolean))].join(" · ");
}

// --- the stages ---
//
// The service that the page comes from says which stages it has, so that the user can switch them before there is a session.
// What a session says counts from then on: its service may be another one.

let declared = "";

/**
 * @param {StageDescription[]} described
 * @param {Models} models
 */
function showStages(described, models) {
  const text = JSON.stringify([described, models]);
  if (text !== declared) {
    declared = text;
    tracks.stages = change.stages = interpreted(described, models);
  }
  return tracks.stages;
}

// --- buttons ---

panel.onsettings = (patch) => client.update(patch);
panel.onsend = (options) => rateControl.set(options);
machine.onagain = () => void sources.again();
machine.onretry = () => client.retryNow();
machine.onleave = () => sources.stop();
machine.oncamera = () => void sources.camera();
machine.onsample = () => void sources.sample();
const stopButton = element("stop", HTMLButtonElement);
const stillButton = element("still", HTMLButtonElement);
const recordButton = element("record", HTMLButtonElement);
const resultsButton = element("results", HTMLButtonElement);
stopButton.onclick = () => sources.stop();
stillButton.onclick = () => sources.source && void saveStill(sources.source, overlay);
recordButton.onclick = () => void record(!recorder);
resultsButton.onclick = () => results.save();

/** @param {boolean} on */
async function record(on) {
  if (on === Boolean(recorder)) return;
  const ending = recorder;
  recorder = on && sources.source ? new Recorder(sources.source, overlay) : null;
  recordButton.ariaPressed = String(Boolean(recorder));
  setText(recordButton, recorder ? "Finish" : "Record");
  element("recording", HTMLParagraphElement).hidden = !recorder;
  await ending?.stop();
}

setInterval(() => {
  resultsButton.disabled = !results.count;
  const time = within(element("recording", HTMLElement), "span", HTMLElement);
  if (recorder) setText(time, `${Math.floor(recorder.seconds)} s`);
}, 500);

/**
 * @param {boolean} source Whether the page shows a source.
 * @param {boolean} running Whether it shows a source or opens one.
 */
function enableButtons(source, running) {
  stopButton.disabled = !running;
  stillButton.disabled = !source;
  recordButton.disabled = !(source || (recorder && running)) || !Recorder.offered;
}

// --- keyboard shortcuts ---
//
// The user can switch them off, because a screen reader or speech input may type single keys.

const SHORTCUTS_KEY = "sightline.shortcuts";
const help = element("shortcuts", HTMLDialogElement);
const shortcutsOn = element("shortcuts-on", HTMLInputElement);
const actions = [
  { key: "c", title: "start the camera", run: () => element("camera", HTMLButtonElement).click() },
  { key: "s", title: "try the sample", run: () => element("sample", HTMLButtonElement).click() },
  { key: "x", title: "stop", run: () => stopButton.click() },
];
const otherActions = [
  { key: "k", title: "pause or play the video", run: () => player.toggle() },
  { key: "p", title: "save a still", run: () => stillButton.click() },
  { key: "r", title: "start or finish recording", run: () => recordButton.click() },
  { key: "d", title: "save the results", run: () => resultsButton.click() },
  { key: "?", title: "show this list", run: showHelp },
];

/** All shortcuts: those of the first nine stages are numbers, by the order of their switches. */
function shortcuts() {
  const numbered = panel.switches.map(({ name, title }, i) => {
    const key = name === "flow" ? "v" : String(i + 1);
    return { key, title: `${title} on or off`, run: () => panel.toggle(name) };
  });
  return [...actions, ...numbered.filter(({ key }) => key.length === 1), ...otherActions];
}

function showHelp() {
  fillRows(within(help, "dl", HTMLDListElement), shortcuts().map(({ key, title }) => [key, title]));
  help.showModal();
}

shortcutsOn.checked = load("browser", SHORTCUTS_KEY) !== "off";
shortcutsOn.onchange = () => store("browser", SHORTCUTS_KEY, shortcutsOn.checked ? "on" : "off");
element("help", HTMLButtonElement).onclick = showHelp;
document.addEventListener("keydown", (event) => {
  if (!shortcutsOn.checked || help.open || event.repeat) return;
  if (event.ctrlKey || event.metaKey || event.altKey || takesText(event.target)) return;
  const found = shortcuts().find(({ key }) => key === event.key.toLowerCase());
  if (!found) return;
  event.preventDefault();
  found.run();
});

/** @param {EventTarget | null} target */
function takesText(target) {
  if (target instanceof HTMLInputElement) return !["checkbox", "range", "file"].includes(target.type);
  return target instanceof HTMLSelectElement || target instanceof HTMLTextAreaElement;
}

// --- the start ---

document.addEventListener("visibilitychange", pauseOrResume);
addEventListener("online", () => client.retryNow());
addEventListener("pagehide", () => client.stop());

for (const id of ["camera", "sample", "screen"]) element(id, HTMLButtonElement).disabled = false;
element("file", HTMLInputElement).disabled = false;
const offered = showStages(config.stages, {});
panel.show(offered);
hud.show(offered);
machine.begin(new URL(config.service_url).host, asked.problems);
pauseOrResume();
element("start-token-row", HTMLLabelElement).hidden = !config.start_server_url;
Object.assign(globalThis, { sightline: { client, overlay, rateControl, hud, sender } });
document.body.dataset.loaded = "";

/** Asks where the service is, and the function that starts it, until there is an answer. By default the service is here. */
async function readConfig() {
  for (;;) {
    try {
      const response = await fetch("/config.json", { cache: "no-cache" });
      // A server of static files has no config.json.
      if (!response.ok && response.status !== 404) throw new Error(`config.json answered ${response.status}`);
      /** @type {{service_url?: string | null, start_server_url?: string | null, stages?: StageDescription[]}} */
      const given = response.ok ? await response.json() : {};
      return {
        service_url: given.service_url || location.origin,
        start_server_url: given.start_server_url || null,
        stages: given.stages ?? [],
      };
    } catch (error) {
      const detail = error instanceof Error ? error.message : String(error);
      const text = `The page could not load the address of the service. Is this device online? (${detail})`;
      await machine.blocked({ title: "The page is not complete", text });
    }
  }
}
