// The page: puts the parts together. Each part knows only its own job; what happens between them is here.

import { Access } from "./access.js";
import { SightlineClient } from "./client.js";
import { element, say, within } from "./elements.js";
import { Encoder } from "./encoder.js";
import { Hud } from "./hud.js";
import { Overlay } from "./overlay.js";
import { Pace } from "./pace.js";
import { Panel } from "./panel.js";
import { Recorder, Results, saveStill } from "./saving.js";
import { Sender } from "./sender.js";
import { listen } from "./shortcuts.js";
import { States } from "./states.js";
import { clearSummaries, showSummary } from "./summaries.js";
import { Switcher } from "./switcher.js";
import { Tracks } from "./tracks.js";

/** @import { Ready } from "./protocol.js" */

const client = new SightlineClient();
const tracks = new Tracks();
/** @type {Overlay} */
const overlay = new Overlay(element("overlay", HTMLCanvasElement), tracks);
const pace = new Pace();
/** @type {Sender} */
const sender = new Sender(client, new Encoder(), pace);
const hud = new Hud(sender, pace);
/** @type {Panel} */
const panel = new Panel();
const states = new States();
const access = new Access();
const results = new Results();
/** @type {Switcher} */
const switcher = new Switcher(states);
const config = await readConfig();
/** @type {Recorder | null} */
let recorder = null;

// --- the picture ---

switcher.onchange = (source) => {
  if (!source) return;
  sender.attach(source);
  overlay.size = () => source;
  element("stage", HTMLDivElement).style.setProperty("--ratio", String(source.width / source.height));
  tracks.clear();
  overlay.start();
  allow(true);
  if (client.state === "idle" || client.state === "ended") connect();
};
sender.onframe = (now) => hud.camera.tick(now);
sender.onproblem = (problem) => states.notice(problem);
overlay.ondraw = (now) => {
  hud.drawn.tick(now);
  if (recorder && switcher.source) recorder.draw(switcher.source, overlay);
};

// --- the session ---

function connect() {
  sender.reset();
  results.clear();
  clearSummaries();
  states.keepReport(null);
  const startServer = config.start_server_url ? { url: config.start_server_url, token: access.startToken } : undefined;
  client.connect({ url: config.service_url, token: access.token, settings: panel.settings, startServer });
}

function leave() {
  client.stop();
  endPicture();
}

function endPicture() {
  void record(false);
  switcher.stop();
  overlay.stop();
  hud.end();
  allow(false);
}

client.on("state", (event) => {
  states.state(event);
  if (event.state !== "live") {
    panel.observe(null);
    hud.forget();
  }
  if (event.state === "ended") endPicture();
});
client.on("starting", (event) => states.starting(event));
client.on("queued", (event) => states.queued(event));
client.on("ready", (ready) => {
  pace.reset();
  overlay.skeleton = ready.models.pose?.skeleton ?? [];
  hud.begin(ready);
  panel.begin(ready);
  say(element("models", HTMLParagraphElement), modelWords(ready));
});
client.on("settings", (settings) => panel.inForce(settings));
client.on("result", (event) => {
  const { result, frame, receivedAt, roundTripMs } = event;
  tracks.observe(result, frame?.capturedAt ?? receivedAt, receivedAt);
  results.add(result);
  hud.observe(event);
  panel.observe(result);
  if (roundTripMs === null) return;
  pace.answered({
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
  if (refusal.seq === null) states.notice(refusal.message);
});
client.on("notice", ({ message }) => states.notice(message));
client.on("summary", showSummary);
client.on("bye", ({ reason, report }) => {
  states.keepReport(report);
  if (report.summary) showSummary(report.summary);
  if (reason === "unauthorized") access.ask();
});

// --- what people press ---

panel.onsettings = (patch) => client.update(patch);
panel.onpace = (wishes) => pace.set(wishes);
states.onagain = () => void switcher.again();
access.onenter = () => {
  if (client.state === "ended") void switcher.again();
};
states.onretry = () => client.retryNow();
states.onleave = leave;
states.onsample = () => void switcher.sample();
const stop = element("stop", HTMLButtonElement);
const still = element("still", HTMLButtonElement);
const recordButton = element("record", HTMLButtonElement);
const resultsButton = element("results", HTMLButtonElement);
stop.onclick = leave;
still.onclick = () => switcher.source && void saveStill(switcher.source, overlay);
recordButton.onclick = () => void record(!recorder);
resultsButton.onclick = () => results.save();

/** @param {boolean} on */
async function record(on) {
  if (on === Boolean(recorder)) return;
  const ending = recorder;
  recorder = on && switcher.source ? new Recorder(switcher.source, overlay) : null;
  recordButton.ariaPressed = String(Boolean(recorder));
  say(recordButton, recorder ? "Finish" : "Record");
  element("recording", HTMLParagraphElement).hidden = !recorder;
  await ending?.stop();
}

setInterval(() => {
  resultsButton.disabled = !results.count;
  const time = within(element("recording", HTMLElement), "span", HTMLElement);
  if (recorder) say(time, `${Math.floor(recorder.seconds)} s`);
}, 500);

/** @param {boolean} running */
function allow(running) {
  stop.disabled = still.disabled = !running;
  recordButton.disabled = !running || !Recorder.offered;
}

listen([
  { key: "c", title: "start the camera", run: () => element("camera", HTMLButtonElement).click() },
  { key: "s", title: "try the sample", run: () => element("sample", HTMLButtonElement).click() },
  { key: "x", title: "stop", run: () => stop.click() },
  { key: "1", title: "objects on or off", run: () => panel.toggle("detect") },
  { key: "2", title: "poses", run: () => panel.toggle("pose") },
  { key: "3", title: "text", run: () => panel.toggle("ocr") },
  { key: "4", title: "motion", run: () => panel.toggle("motion") },
  { key: "5", title: "tracks", run: () => panel.toggle("track") },
  { key: "6", title: "motion vectors", run: () => panel.toggle("field") },
  { key: "p", title: "save a still", run: () => still.click() },
  { key: "r", title: "record, stop recording", run: () => recordButton.click() },
  { key: "d", title: "save the results", run: () => resultsButton.click() },
]);

document.addEventListener("visibilitychange", () => (document.hidden ? client.pause() : client.resume()));
addEventListener("online", () => client.retryNow());
addEventListener("pagehide", () => client.stop());

// --- the beginning ---

states.begin(new URL(config.service_url).host);
if (config.start_server_url) access.askForStartToken();
Object.assign(globalThis, { sightline: { client, overlay, pace, hud, sender } });
document.body.dataset.loaded = "";

/** Where the service is, when not where this page came from; and what starts it. */
async function readConfig() {
  const response = await fetch("/config.json", { cache: "no-cache" });
  /** @type {{service_url?: string | null, start_server_url?: string | null}} */
  const given = response.ok ? await response.json() : {};
  return { service_url: given.service_url || location.origin, start_server_url: given.start_server_url || null };
}

/** @param {Ready} ready */
function modelWords({ models: { detect, pose, ocr } }) {
  const names = new Set([detect?.name, pose?.name, ocr].filter(Boolean));
  return [...names].join(" · ");
}
