// The page: puts the parts together. Each part knows only its own job; what happens between them is here.

import { Access } from "./access.js";
import { SightlineClient } from "./client.js";
import { Overlay } from "./drawing.js";
import { element, say, within } from "./elements.js";
import { Hud } from "./hud.js";
import { Panel } from "./panel.js";
import { Player } from "./player.js";
import { readQuery } from "./query.js";
import { Recorder, Results, saveStill } from "./saving.js";
import { Encoder, RateControl, Sender } from "./sender.js";
import { listen } from "./shortcuts.js";
import { States } from "./states.js";
import { clearSummaries, showSummary } from "./summaries.js";
import { Switcher } from "./switcher.js";
import { SourceChange, Tracks } from "./tracks.js";

/** @import { Ready } from "./protocol.js" */
/** @import { Source } from "./source.js" */

const states = new States();
const config = await readConfig(); // before anything can be pressed: a press would find half a page
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
/** @type {Panel} */
const panel = new Panel(asked.settings);
const player = new Player();
const access = new Access();
const results = new Results();
/** @type {Switcher} */
const switcher = new Switcher(states);
/** @type {Recorder | null} */
let recorder = null;
/** @type {Source | null} */
let shown = null;
let ratio = 0;

// --- the picture, and the session that follows it ---
//
// A picture without a session gets one; one that is shown in a session takes over in it. A session without a picture
// is paused while another is being opened, and ended when none is. A session that ends takes its picture with it.

switcher.onchange = () => {
  const { source, opening } = switcher;
  if (source !== shown) turnTo(source);
  allow(Boolean(source), Boolean(source) || opening);
  if (source && ["idle", "stopping", "ended"].includes(client.state)) connect();
  if (!source && !opening) end();
  attend();
};

/** @param {Source | null} source */
function turnTo(source) {
  shown = source;
  ratio = 0;
  sender.attach(source);
  if (source) source.onjump = forgetPicture;
  player.attach(source?.kind === "film" && source.view instanceof HTMLVideoElement ? source.view : null);
  forgetPicture();
  overlay.size = () => source ?? { width: 0, height: 0 };
  if (source) overlay.start();
  else overlay.stop();
  if (source?.width) shape(source);
}

/** What was sent so far shows another picture. */
function forgetPicture() {
  sender.discardPending();
  change.mark(client.lastSeq, performance.now());
  tracks.clear();
  hud.forget();
}

/** @param {Source} source */
function shape({ width, height }) {
  ratio = width / height;
  element("stage", HTMLDivElement).style.setProperty("--ratio", String(ratio));
}

function end() {
  client.stop();
  void record(false);
  hud.end();
}

/** Frames are wanted while there is a picture that somebody looks at. */
function attend() {
  if (document.hidden || !switcher.source) client.pause();
  else client.resume();
}

sender.onframe = (now) => hud.camera.tick(now);
sender.onproblem = (problem) => states.notice(problem, "picture");
overlay.ondraw = (now) => {
  hud.drawn.tick(now);
  const { source } = switcher;
  if (!source?.width) return;
  if (Math.abs(source.width / source.height / ratio - 1) > 0.01) {
    forgetPicture(); // a phone was turned, a shared window has another shape
    shape(source);
  }
  if (recorder) recorder.draw(source, overlay);
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

client.on("state", (event) => {
  if (event.state === "ended") switcher.release();
  states.state(event);
  if (event.state === "live") return;
  panel.observe(null);
  hud.pause();
  if (event.state === "ended") hud.end();
});
client.on("starting", (event) => states.starting(event));
client.on("queued", (event) => states.queued(event));
client.on("ready", (ready) => {
  rateControl.reset();
  overlay.skeleton = ready.models.pose?.skeleton ?? [];
  hud.begin(ready);
  panel.begin(ready);
  if (client.settled) panel.inForce(ready.settings);
  say(element("models", HTMLParagraphElement), modelWords(ready));
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
panel.onsend = (options) => rateControl.set(options);
states.onagain = () => void switcher.again();
access.onenter = () => {
  if (client.state === "ended") void switcher.again();
};
states.onretry = () => client.retryNow();
states.onleave = () => switcher.stop();
states.oncamera = () => void switcher.camera();
states.onsample = () => void switcher.sample();
const stop = element("stop", HTMLButtonElement);
const still = element("still", HTMLButtonElement);
const recordButton = element("record", HTMLButtonElement);
const resultsButton = element("results", HTMLButtonElement);
stop.onclick = () => switcher.stop();
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

/**
 * @param {boolean} picture There is one.
 * @param {boolean} running … or will be.
 */
function allow(picture, running) {
  stop.disabled = !running;
  still.disabled = !picture;
  recordButton.disabled = !(picture || (recorder && running)) || !Recorder.offered;
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
  { key: "k", title: "pause the film or play it on", run: () => player.toggle() },
  { key: "p", title: "save a still", run: () => still.click() },
  { key: "r", title: "record, stop recording", run: () => recordButton.click() },
  { key: "d", title: "save the results", run: () => resultsButton.click() },
]);

document.addEventListener("visibilitychange", attend);
addEventListener("online", () => client.retryNow());
addEventListener("pagehide", () => client.stop());

// --- the beginning ---

for (const id of ["camera", "sample", "screen"]) element(id, HTMLButtonElement).disabled = false;
element("file", HTMLInputElement).disabled = false;
states.begin(new URL(config.service_url).host, asked.problems);
attend();
if (config.start_server_url) access.askForStartToken();
Object.assign(globalThis, { sightline: { client, overlay, rateControl, hud, sender } });
document.body.dataset.loaded = "";

/** Where the service is, when not where this page came from; and what starts it. Asks until there is an answer. */
async function readConfig() {
  for (;;) {
    try {
      const response = await fetch("/config.json", { cache: "no-cache" });
      // A page that is served as mere files has none.
      if (!response.ok && response.status !== 404) throw new Error(`config.json answered ${response.status}`);
      /** @type {{service_url?: string | null, start_server_url?: string | null}} */
      const given = response.ok ? await response.json() : {};
      return { service_url: given.service_url || location.origin, start_server_url: given.start_server_url || null };
    } catch (error) {
      const detail = error instanceof Error ? error.message : String(error);
      const text = `Where the service is could not be asked. Is this machine online? (${detail})`;
      await states.blocked({ title: "The page is not complete", text });
    }
  }
}

/** @param {Ready} ready */
function modelWords({ models: { detect, pose, ocr } }) {
  const names = new Set([detect?.name, pose?.name, ocr].filter(Boolean));
  return [...names].join(" · ");
}
