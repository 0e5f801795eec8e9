// The client with a fake socket: credits, settings, how a session ends and how the client connects again.

import assert from "node:assert/strict";
import { beforeEach, mock, test } from "node:test";

import { SightlineClient } from "../../app/web/client.js";

const JPEG = Uint8Array.of(0xff, 0xd8, 0xff);
const REPORT = { received: 3, processed: 3, dropped: {}, failed: 0, bytes: 9, duration_s: 1, stages: {} };
const READY = {
  type: "ready",
  session_id: "s",
  models: { detect: { name: "yolo", classes: ["person"] }, pose: null, ocr: null },
  settings: {},
  limits: {},
  credits: 2,
};

/** The service's end of a socket. */
class Socket {
  static OPEN = 1;
  static opened = [];
  readyState = 0;
  sent = [];
  constructor(url) {
    this.url = url;
    Socket.opened.push(this);
  }
  send(data) {
    this.sent.push(typeof data === "string" ? JSON.parse(data) : data);
  }
  close() {
    this.readyState = 3;
  }
  accept() {
    this.readyState = 1;
    this.onopen();
  }
  say(message) {
    this.onmessage({ data: JSON.stringify(message) });
  }
  end(reason = "") {
    this.readyState = 3;
    this.onclose?.({ code: 1000, reason });
  }
  static get last() {
    return Socket.opened.at(-1);
  }
}

beforeEach(() => {
  mock.reset();
  mock.timers.reset();
  mock.timers.enable({ apis: ["setTimeout"] });
  globalThis.WebSocket = Socket;
  globalThis.fetch = () => Promise.reject(new TypeError("no server"));
  Socket.opened = [];
});

function live(options = {}, ready = {}) {
  const client = new SightlineClient();
  const states = [];
  client.on("state", ({ state }) => states.push(state));
  client.connect({ url: "http://sight.test", ...options });
  Socket.last.accept();
  Socket.last.say({ ...READY, ...ready });
  return { client, states, socket: Socket.last };
}

function result(seq, more = {}) {
  return { type: "result", seq, age_ms: 5, objects: [], dropped: { since_last: 0, total: 0 }, ...more };
}

test("opens with init, its token and its settings", () => {
  const { client, states, socket } = live({ token: "secret", settings: { confidence: 0.5, stages: { ocr: false } } });
  assert.equal(socket.url, "ws://sight.test/ws/inference");
  assert.deepEqual(socket.sent, [
    { type: "init", protocol: 1, token: "secret", confidence: 0.5, stages: { ocr: false } },
  ]);
  assert.deepEqual(states, ["connecting", "live"]);
  assert.equal(client.wantsFrame, true);
});

test("sends no more than the credits allow; an answer acknowledges all frames before it", async () => {
  const { client, socket } = live();
  const seen = [];
  client.on("result", (event) => seen.push(event));
  assert.equal(client.sendFrame(JPEG), 1);
  assert.equal(client.sendFrame(JPEG), 2);
  assert.equal(client.sendFrame(JPEG), null);
  const wanted = client.frameWanted();
  socket.say(result(2));
  await wanted;
  assert.deepEqual([client.sendFrame(JPEG), client.sendFrame(JPEG), client.sendFrame(JPEG)], [3, 4, null]);
  assert.equal(seen[0].frame.seq, 2);
  assert.ok(seen[0].roundTripMs >= 0 && seen[0].ageMs >= seen[0].roundTripMs);
  assert.equal(socket.sent.filter((message) => message instanceof Uint8Array).length, 4);
});

test("a refused frame returns its credit and fires an event", () => {
  const { client, socket } = live();
  const refused = [];
  client.on("refused", (event) => refused.push(event.code));
  client.sendFrame(JPEG);
  client.sendFrame(JPEG);
  socket.say({ type: "error", code: "stale", message: "waited", field: null, seq: 1, fatal: false });
  assert.equal(client.sendFrame(JPEG), 3);
  assert.deepEqual(refused, ["stale"]);
});

test("a result returns the credits of its frame and of all earlier ones, once", () => {
  const { client, socket } = live({}, { credits: 3 });
  const frames = [];
  client.on("result", ({ frame }) => frames.push(frame?.seq ?? null));
  for (const seq of [1, 2, 3]) assert.equal(client.sendFrame(JPEG), seq);
  assert.equal(client.wantsFrame, false);
  socket.say(result(2));
  socket.say(result(2));
  assert.deepEqual([client.sendFrame(JPEG), client.sendFrame(JPEG), client.sendFrame(JPEG)], [4, 5, null]);
  socket.say(result(3));
  assert.deepEqual(frames, [2, null, 3]);
  assert.deepEqual([client.sendFrame(JPEG), client.sendFrame(JPEG)], [6, null]);
});

test("a refusal returns the credit of its frame alone, once: a frame may be refused before earlier ones are answered", () => {
  const { client, socket } = live({}, { credits: 3 });
  const frames = [];
  client.on("result", ({ frame }) => frames.push(frame?.seq ?? null));
  for (const seq of [1, 2, 3]) assert.equal(client.sendFrame(JPEG), seq);
  const refusal = { type: "error", code: "stale", message: "waited", field: null, seq: 3, fatal: false };
  socket.say(refusal);
  socket.say(refusal);
  assert.deepEqual([client.sendFrame(JPEG), client.sendFrame(JPEG)], [4, null]);
  socket.say(result(1));
  assert.deepEqual(frames, [1]);
  assert.deepEqual([client.sendFrame(JPEG), client.sendFrame(JPEG)], [5, null]);
});

test("bye comes with a sentence, also for a reason that the client does not know", () => {
  for (const [reason, message, expected] of [
    ["idle", null, /frames/],
    ["new_reason", "so there", /new_reason.*so there/],
  ]) {
    const { client, socket } = live();
    const texts = [];
    client.on("bye", ({ text }) => texts.push(text));
    socket.say({ type: "bye", reason, report: REPORT, message, retry_after_s: null });
    assert.match(texts[0], expected);
  }
});

test("answers pings", () => {
  const { socket } = live();
  socket.say({ type: "ping", t: 12.5 });
  assert.deepEqual(socket.sent.at(-1), { type: "pong", t: 12.5 });
});

test("settings changed by update are kept over a lost connection", () => {
  const { client, states, socket } = live({ settings: { stages: { ocr: false } } });
  client.update({ stages: { pose: false }, confidence: 0.7 });
  assert.deepEqual(socket.sent.at(-1), { type: "update", stages: { pose: false }, confidence: 0.7 });
  socket.end();
  assert.equal(client.state, "waiting");
  mock.timers.tick(20_000);
  Socket.last.accept();
  assert.equal(Socket.opened.length, 2);
  const { type, stages, confidence } = Socket.last.sent[0];
  assert.deepEqual([type, stages, confidence], ["init", { ocr: false, pose: false }, 0.7]);
  Socket.last.say(READY);
  assert.deepEqual(states, ["connecting", "live", "waiting", "connecting", "live"]);
});

for (const reason of ["stopped", "unauthorized", "protocol_error"]) {
  test(`does not come back after ${reason}`, () => {
    const { client, socket } = live();
    const byes = [];
    client.on("bye", (event) => byes.push(event));
    socket.say({ type: "bye", reason, report: REPORT, message: null, retry_after_s: null });
    socket.end(reason);
    mock.timers.tick(600_000);
    assert.equal(client.state, "ended");
    assert.equal(Socket.opened.length, 1);
    assert.deepEqual(byes[0].report, REPORT);
    assert.equal(byes[0].again, false);
    assert.ok(byes[0].text.length > 10);
  });
}

test("waits as long as the service asks before it comes back", () => {
  const client = new SightlineClient();
  client.connect({ url: "http://sight.test" });
  Socket.last.accept();
  Socket.last.say({ type: "bye", reason: "rejected", report: REPORT, message: null, retry_after_s: 30 });
  Socket.last.end();
  mock.timers.tick(30_000);
  assert.equal(Socket.opened.length, 1);
  mock.timers.tick(1_000);
  assert.equal(Socket.opened.length, 2);
});

test("reports the place in the waiting room, then goes live", () => {
  const client = new SightlineClient();
  const queued = [];
  client.on("queued", (event) => queued.push(event.position));
  client.connect({ url: "http://sight.test" });
  Socket.last.accept();
  Socket.last.say({ type: "queued", position: 2, ahead: 1, eta_s: 10 });
  assert.equal(client.state, "queued");
  Socket.last.say({ type: "queued", position: 1, ahead: 0, eta_s: 5 });
  Socket.last.say(READY);
  assert.deepEqual([client.state, queued], ["live", [2, 1]]);
});

test("a paused page sends nothing and is not connected again before it resumes", () => {
  const { client, socket } = live();
  client.pause();
  assert.deepEqual(socket.sent.at(-1), { type: "pause" });
  assert.equal(client.sendFrame(JPEG), null);
  socket.say({ type: "bye", reason: "idle", report: REPORT, message: null, retry_after_s: null });
  socket.end();
  mock.timers.tick(600_000);
  assert.equal(Socket.opened.length, 1);
  client.resume();
  assert.equal(Socket.opened.length, 2);
});

test("stop says so, waits for bye, and ends without one", () => {
  const { client, socket } = live();
  client.stop();
  assert.equal(client.state, "stopping");
  client.pause();
  client.stop();
  assert.deepEqual(
    socket.sent.filter(({ type }) => type !== "init"),
    [{ type: "stop" }],
  );
  assert.equal(client.sendFrame(JPEG), null);
  mock.timers.tick(3_000);
  assert.equal(client.state, "ended");
});

test("a service that does not answer is tried again", () => {
  const client = new SightlineClient();
  client.connect({ url: "http://sight.test" });
  mock.timers.tick(10_000);
  assert.equal(client.state, "waiting");
  client.retryNow();
  assert.equal(Socket.opened.length, 2);
});

test("classes that another model does not know are withdrawn, and the session goes on", () => {
  const client = new SightlineClient();
  client.connect({ url: "http://sight.test", settings: { classes: ["zebra"], confidence: 0.4 } });
  Socket.last.accept();
  Socket.last.say({ type: "error", code: "invalid_value", message: "no", field: "classes.0", seq: null, fatal: false });
  const [first, second] = Socket.last.sent;
  assert.deepEqual(first.classes, ["zebra"]);
  assert.deepEqual([second.type, second.classes, second.confidence], ["init", undefined, 0.4]);
});

test("a session that is being stopped does not go live any more", () => {
  const client = new SightlineClient();
  client.connect({ url: "http://sight.test" });
  Socket.last.accept();
  client.stop();
  Socket.last.say({ type: "queued", position: 2, ahead: 1, eta_s: 10 });
  Socket.last.say(READY);
  assert.deepEqual([client.state, client.wantsFrame], ["stopping", false]);
  Socket.last.say({ type: "bye", reason: "stopped", report: REPORT, message: null, retry_after_s: null });
  Socket.last.end();
  assert.equal(client.state, "ended");
});

test("a new session may begin before the last one's bye, and is not ended by it", () => {
  const { client, states, socket } = live();
  client.stop();
  client.connect({ url: "http://sight.test" });
  socket.end("stopped");
  Socket.last.accept();
  Socket.last.say(READY);
  mock.timers.tick(3_000);
  assert.deepEqual(states, ["connecting", "live", "stopping", "connecting", "live"]);
});

test("without a session there is nothing to stop", () => {
  const client = new SightlineClient();
  client.stop();
  assert.equal(client.state, "idle");
});

test("a setting that init asks for in vain is withdrawn, each in turn, and init is sent again with the rest", () => {
  const client = new SightlineClient();
  const settings = { stages: { ocr: false, pose: "no" }, summary: { prompt: "nope" }, confidence: 0.4 };
  client.connect({ url: "http://sight.test", settings, mode: "lossless" });
  Socket.last.accept();
  const refuse = (field) => {
    Socket.last.say({ type: "error", code: "invalid_value", message: "no", field, seq: null, fatal: false });
    const { type, protocol, token, ...rest } = Socket.last.sent.at(-1);
    assert.deepEqual([type, protocol, token], ["init", 1, undefined]);
    return rest;
  };
  assert.deepEqual(refuse("summary.prompt"), { stages: settings.stages, confidence: 0.4, mode: "lossless" });
  assert.deepEqual(refuse("stages.pose"), { stages: { ocr: false }, confidence: 0.4, mode: "lossless" });
  assert.deepEqual(refuse("mode"), { stages: { ocr: false }, confidence: 0.4 });
  Socket.last.say(READY);
  assert.equal(client.state, "live");
});

for (const field of ["protocol", "confidence", null]) {
  test(`an init that is refused for ${field}, which was not asked for or is withdrawn, ends it with the service's message`, () => {
    const client = new SightlineClient();
    const whys = [];
    client.on("state", ({ reason, why }) => whys.push([reason, why]));
    client.connect({ url: "http://sight.test", settings: { confidence: 3 } });
    Socket.last.accept();
    const no = { type: "error", code: "invalid_value", message: "so and so", field, seq: null, fatal: false };
    Socket.last.say(no);
    if (field === "confidence") Socket.last.say(no);
    mock.timers.tick(600_000);
    assert.equal(client.state, "ended");
    assert.equal(whys.at(-1)[0], "protocol_error");
    assert.match(whys.at(-1)[1], /so and so/);
    assert.equal(Socket.opened.length, 1);
  });
}

test("the settings in force are reported once every change is answered", () => {
  const { client, socket } = live();
  const reported = [];
  client.on("settings", (settings) => reported.push(settings));
  client.update({ stages: { pose: false } });
  client.update({ stages: { motion: false } });
  socket.say({ type: "settings", settings: { step: 1 } });
  assert.deepEqual([reported, client.settled], [[], false]);
  socket.say({ type: "settings", settings: { step: 2 } });
  assert.deepEqual([reported, client.settled], [[{ step: 2 }], true]);
});

test("a refused change counts as answered, and the settings in force stay", () => {
  const { client, socket } = live();
  const reported = [];
  client.on("settings", (settings) => reported.push(settings));
  client.update({ confidence: 0.5 });
  client.update({ classes: ["zebra"] });
  socket.say({ type: "settings", settings: { confidence: 0.5 } });
  socket.say({ type: "error", code: "invalid_value", message: "no", field: "classes.0", seq: null, fatal: false });
  assert.deepEqual(reported, [{ confidence: 0.5 }]);
  assert.equal(client.state, "live");
  // A frame's error answers no change.
  client.update({ confidence: 0.6 });
  socket.say({ type: "error", code: "stale", message: "waited", field: null, seq: 1, fatal: false });
  assert.equal(client.settled, false);
});

test("a change made before the session is live is sent once it is", () => {
  const client = new SightlineClient();
  client.connect({ url: "http://sight.test" });
  Socket.last.accept();
  client.update({ stages: { pose: false } });
  Socket.last.say({ type: "queued", position: 1, ahead: 0, eta_s: 5 });
  client.update({ confidence: 0.7 });
  assert.deepEqual(
    Socket.last.sent.map(({ type }) => type),
    ["init"],
  );
  let settled = null;
  client.on("ready", () => (settled = client.settled));
  Socket.last.say(READY);
  assert.deepEqual(Socket.last.sent.at(-1), { type: "update", stages: { pose: false }, confidence: 0.7 });
  assert.equal(settled, false); // what `ready` says is older than that
});

test("a service that was never reached is not called lost", () => {
  const client = new SightlineClient();
  const whys = [];
  client.on("state", ({ reason, why }) => whys.push([reason, why]));
  client.connect({ url: "http://sight.test" });
  Socket.last.end();
  assert.deepEqual(whys.at(-1), ["unreachable", "The service cannot be reached."]);
  client.retryNow();
  Socket.last.accept();
  Socket.last.say(READY);
  Socket.last.end();
  assert.deepEqual(whys.at(-1), ["lost", "The connection was lost."]);
});

/** What the service answers to plain HTTP at its socket's address. */
function refusing(message, status = 403) {
  const asked = [];
  globalThis.fetch = async (url, { method }) => {
    asked.push([method, url]);
    const starter = url.includes("start.test");
    return starter ? Response.json({ state: "running" }) : Response.json({ error: { message } }, { status });
  };
  return asked;
}

test("b3: a refused socket is asked for its reason, which the state event carries", async () => {
  const asked = refusing("pages of http://page.test may not use this service");
  const client = new SightlineClient();
  const whys = [];
  client.on("state", ({ state, reason, why, retryAt }) => whys.push([state, reason, why, retryAt !== null]));
  client.connect({ url: "http://sight.test" });
  Socket.last.end();
  await settle();
  assert.deepEqual(asked, [["POST", "http://sight.test/ws/inference"]]);
  const why = "The service refuses the connection: pages of http://page.test may not use this service.";
  assert.deepEqual(whys.at(-1), ["waiting", "refused", why, true]);
  const before = Socket.opened.length;
  mock.timers.tick(60_000);
  assert.equal(Socket.opened.length, before + 1); // it may be allowed meanwhile
});

test("b3: a service that runs and refuses is waited for no longer", async () => {
  refusing("pages of http://page.test may not use this service");
  const client = new SightlineClient();
  client.connect({ url: "http://sight.test", startServer: { url: "http://start.test" } });
  Socket.last.end();
  await settle();
  assert.equal(client.state, "starting");
  mock.timers.tick(4_000);
  Socket.last.end();
  await settle();
  assert.equal(client.state, "waiting");
});

test("b3: an answer that comes after the next attempt changes nothing", async () => {
  refusing("too late");
  const client = new SightlineClient();
  client.connect({ url: "http://sight.test" });
  Socket.last.end();
  client.retryNow();
  Socket.last.accept();
  Socket.last.say(READY);
  await settle();
  assert.equal(client.state, "live");
  assert.equal(client.wantsFrame, true);
});

test("has a service started that is switched off, and connects when it is there", async () => {
  const calls = [];
  const answers = [
    { state: "starting", eta_s: 40 },
    { state: "running", eta_s: 0, url: "http://new.test" },
  ];
  mock.method(globalThis, "fetch", async (url, { method, headers }) => {
    calls.push([url, method, headers.Authorization]);
    return new Response(JSON.stringify(answers[Math.min(calls.length, 2) - 1]));
  });
  const client = new SightlineClient();
  const reported = [];
  client.on("starting", ({ state, etaS }) => reported.push([state, etaS]));
  client.connect({ url: "http://sight.test", startServer: { url: "http://start.test/", token: "t" } });
  Socket.last.end();
  assert.equal(client.state, "starting");
  await settle();
  mock.timers.tick(4_000);
  Socket.last.end();
  await settle();
  mock.timers.tick(4_000);
  assert.equal(Socket.last.url, "ws://new.test/ws/inference");
  Socket.last.accept();
  Socket.last.say(READY);
  assert.equal(client.state, "live");
  assert.deepEqual(calls, [
    ["http://start.test/", "POST", "Bearer t"],
    ["http://start.test/", "GET", "Bearer t"],
  ]);
  assert.deepEqual(reported, [
    ["starting", 40],
    ["running", 0],
  ]);
});

test("a start that could not be made now is asked for again", async () => {
  const methods = [];
  mock.method(globalThis, "fetch", async (url, { method }) => {
    methods.push(method);
    const there = JSON.stringify({ state: "starting", eta_s: 40 });
    return methods.length === 1 ? new Response("{}", { status: 429 }) : new Response(there);
  });
  const client = new SightlineClient();
  client.connect({ url: "http://sight.test", startServer: { url: "http://start.test/" } });
  for (let turn = 0; turn < 3; turn += 1) {
    Socket.last.end();
    await settle();
    mock.timers.tick(4_000);
  }
  assert.deepEqual(methods, ["POST", "POST", "GET"]);
});

test("a machine that is switched off again during the wait is started again", async () => {
  const methods = [];
  const states = ["starting", "stopping", "stopped", "starting", "starting"];
  mock.method(globalThis, "fetch", async (url, { method }) => {
    methods.push(method);
    return new Response(JSON.stringify({ state: states[methods.length - 1], eta_s: null }));
  });
  const client = new SightlineClient();
  client.connect({ url: "http://sight.test", startServer: { url: "http://start.test/" } });
  for (let turn = 0; turn < 5; turn += 1) {
    Socket.last.end();
    await settle();
    mock.timers.tick(4_000);
  }
  assert.deepEqual(methods, ["POST", "GET", "GET", "POST", "GET"]);
});

test("a start that is refused ends it with the reason", async () => {
  mock.method(globalThis, "fetch", async () => new Response("{}", { status: 403 }));
  const client = new SightlineClient();
  const whys = [];
  client.on("state", ({ why }) => whys.push(why));
  client.connect({ url: "http://sight.test", startServer: { url: "http://start.test/" } });
  Socket.last.end();
  await settle();
  assert.equal(client.state, "ended");
  assert.match(whys.at(-1), /token/);
});

/** Lets promises settle; timers stand still. */
async function settle() {
  for (let turn = 0; turn < 20; turn += 1) await Promise.resolve();
  await new Promise((resolve) => setImmediate(resolve));
}

// --- E4: answers stop coming ---

function watched(options) {
  const got = live(options);
  const stalls = [];
  got.client.on("state", ({ state, previous, silentSince }) => {
    if (state === "stalled" || previous === "stalled") stalls.push(state);
    if (state === "stalled") assert.ok(silentSince <= performance.now());
  });
  return { ...got, stalls };
}

test("e4: a frame without an answer for three seconds is a session that stalls", () => {
  const { client, socket, stalls } = watched();
  client.sendFrame(JPEG);
  mock.timers.tick(2900);
  assert.equal(client.state, "live");
  mock.timers.tick(200);
  assert.equal(client.state, "stalled");
  assert.equal(client.sendFrame(JPEG), 2); // there is a credit; this frame shows when the network is back
  socket.say({ type: "ping", t: 1 }); // is no answer
  client.update({ confidence: 0.6 }); // takes effect when it gets through
  assert.equal(socket.sent.at(-1).type, "update");
  assert.equal(client.state, "stalled");
  socket.say(result(1));
  assert.equal(client.state, "live");
  socket.say(result(2));
  mock.timers.tick(15_000);
  assert.deepEqual(stalls, ["stalled", "live"]);
});

test("e4: every answer begins the three seconds anew, a refusal too", () => {
  const { client, socket, stalls } = watched();
  for (let seq = 1; seq <= 4; seq += 1) {
    client.sendFrame(JPEG);
    mock.timers.tick(2500);
    const refusal = { type: "error", code: "stale", message: "waited", field: null, seq, fatal: false };
    socket.say(seq % 2 ? refusal : result(seq));
  }
  assert.deepEqual(stalls, []);
});

test("e4: nothing stalls that sent nothing, waits in line, or is paused", () => {
  const { client, socket, stalls } = watched();
  mock.timers.tick(10_000);
  client.sendFrame(JPEG);
  client.pause();
  mock.timers.tick(5000);
  client.resume();
  mock.timers.tick(2900);
  assert.deepEqual(stalls, []);
  mock.timers.tick(200);
  assert.equal(client.state, "stalled");
  client.pause(); // the page is hidden
  assert.equal(client.state, "live");
  mock.timers.tick(5000);
  client.resume();
  socket.say(result(1));
  assert.deepEqual(stalls, ["stalled", "live"]);
  const other = new SightlineClient();
  other.connect({ url: "http://sight.test" });
  Socket.last.accept();
  Socket.last.say({ type: "queued", position: 2, ahead: 1, eta_s: null });
  mock.timers.tick(10_000);
  assert.equal(other.state, "queued");
});

test("e4: a session that stalls can be stopped, and its end is an end", () => {
  const stopped = watched();
  stopped.client.sendFrame(JPEG);
  mock.timers.tick(3100);
  stopped.client.stop();
  assert.equal(stopped.client.state, "stopping");
  mock.timers.tick(5000);
  assert.equal(stopped.client.state, "ended");
  const lost = watched();
  lost.client.sendFrame(JPEG);
  mock.timers.tick(3100);
  lost.socket.end();
  assert.equal(lost.client.state, "waiting");
  mock.timers.tick(20_000);
  Socket.last.accept();
  Socket.last.say(READY);
  mock.timers.tick(20_000);
  assert.equal(lost.client.state, "live"); // what was on its way is lost and not waited for
});
