// The parts of the page that need no browser, network or clock.

import assert from "node:assert/strict";
import { test } from "node:test";

import { retryDelay } from "../../app/web/connection.js";
import { RateMeter, Samples, sharesOf } from "../../app/web/hud.js";
import { HEADER_BYTES, packFrame, socketUrl } from "../../app/web/protocol.js";
import { withDuration } from "../../app/web/saving.js";
import { RateControl, fit, fitArea } from "../../app/web/sender.js";
import { readQuery } from "../../app/web/settings.js";
import { problemOf } from "../../app/web/source-switch.js";
import { kindOf } from "../../app/web/source.js";
import { classLabel, clock, inViewText, stageText } from "../../app/web/text.js";
import { MODELS, STAGES, changeOf } from "./stages.mjs";

test("a frame's header is read back as it was written", () => {
  const message = packFrame(Uint8Array.of(0xff, 0xd8, 7), 4_000_000_001, 1_700_000_000_123.5);
  const view = new DataView(message.buffer);
  assert.equal(String.fromCharCode(...message.slice(0, 4)), "SLF1");
  assert.equal(view.getUint32(4), 4_000_000_001);
  assert.equal(view.getFloat64(8), 1_700_000_000_123.5);
  assert.deepEqual([...message.slice(HEADER_BYTES)], [0xff, 0xd8, 7]);
});

test("the live socket is found from any address of the service", () => {
  assert.equal(socketUrl("http://127.0.0.1:8000"), "ws://127.0.0.1:8000/ws/inference");
  assert.equal(socketUrl("https://sight.example/cv/"), "wss://sight.example/cv/ws/inference");
  assert.equal(socketUrl("wss://sight.example/ws/inference"), "wss://sight.example/ws/inference");
});

test("the wait grows, is spread over all of it, and never undercuts what the service asked for", () => {
  const longest = [0, 1, 2, 3].map((attempt) => retryDelay(attempt, null, () => 1));
  assert.deepEqual(longest, [500, 1000, 2000, 4000]);
  assert.equal(retryDelay(50, null, () => 1), 20_000);
  assert.equal(retryDelay(3, null, () => 0), 100);
  assert.equal(retryDelay(0, 7, () => 0.5), 7250);
});

test("a rate is right after two ticks, and falls once nothing comes", () => {
  const meter = new RateMeter(2000);
  for (let at = 0; at <= 1000; at += 100) meter.tick(at);
  assert.equal(meter.rate(1000), 10);
  assert.ok(meter.rate(1900) < 6);
  assert.equal(meter.rate(4000), 0);
  assert.equal(meter.total, 11);
});

test("quantiles are of the last values only", () => {
  const samples = new Samples(10);
  assert.equal(samples.quantile(0.5), null);
  for (let value = 1; value <= 15; value += 1) samples.add(value);
  assert.equal(samples.quantile(0), 6);
  assert.equal(samples.quantile(0.5), 10);
  assert.equal(samples.quantile(0.95), 15);
});

/** Runs a rate control against a service that needs `serviceMs` a frame and holds another in its inbox. */
function drive(control, { serviceMs, networkMs = 2, seconds }) {
  let [now, free, waited] = [0, 0, []];
  const until = seconds * 1000;
  while (now < until) {
    now += 1000 / 30;
    if (!control.due(now) || free - now > serviceMs) continue;
    control.sent(now);
    const waitedMs = Math.max(0, free - now);
    free = Math.max(now, free) + serviceMs;
    const serverMs = waitedMs + serviceMs;
    control.answered({ now: free, roundTripMs: serverMs + networkMs, serverMs, waitedMs, encodeMs: 5, dropped: 0 });
    waited.push(waitedMs);
  }
  return { rate: waited.length / seconds, waitedMs: waited.slice(-20).reduce((sum, value) => sum + value, 0) / 20 };
}

test("a slow service is sent what it can do, and frames hardly wait there", () => {
  const { rate, waitedMs } = drive(new RateControl(), { serviceMs: 200, seconds: 60 });
  assert.ok(rate > 3.5 && rate < 5.3, `${rate}`);
  assert.ok(waitedMs < 120, `${waitedMs}`);
});

test("a fast service is sent every frame", () => {
  const control = new RateControl();
  const { rate } = drive(control, { serviceMs: 10, seconds: 20 });
  assert.ok(rate > 28, `${rate}`);
  assert.equal(control.quality, 0.8);
  assert.equal(control.size, 640);
});

test("a slow network lowers quality, then size, and both come back", () => {
  const control = new RateControl();
  drive(control, { serviceMs: 30, networkMs: 400, seconds: 40 });
  assert.equal(control.quality, 0.5);
  assert.ok(control.size < 640);
  drive(control, { serviceMs: 10, networkMs: 5, seconds: 120 });
  assert.equal(control.size, 640);
});

test("what is set by hand stays", () => {
  const control = new RateControl();
  control.set({ size: 960, quality: 0.9, rate: 5 });
  drive(control, { serviceMs: 30, networkMs: 400, seconds: 20 });
  assert.deepEqual([control.size, control.quality, control.rate], [960, 0.9, 5]);
  control.set({ size: null });
  assert.ok(control.size <= 640);
});

test("a frame is scaled down, never up", () => {
  assert.deepEqual(fit(1280, 720, 640), { width: 640, height: 360 });
  assert.deepEqual(fit(480, 640, 640), { width: 480, height: 640 });
  assert.deepEqual(fit(3000, 10, 320), { width: 320, height: 1 });
});

test("e5: by itself the size is chosen by area, the least side bounded", () => {
  const control = new RateControl();
  const area = 640 * 480;
  assert.deepEqual(control.fit(640, 480), { width: 640, height: 480 });
  assert.deepEqual(control.fit(1280, 960), { width: 640, height: 480 });
  for (const [width, height] of [[1920, 400], [400, 1920], [1280, 720], [720, 1280], [1000, 1000], [3840, 2160], [7680, 4320]]) {
    const sent = control.fit(width, height);
    assert.ok(Math.abs((sent.width * sent.height) / area - 1) < 0.01, `${sent.width}x${sent.height}`);
    assert.ok(Math.abs(sent.width / sent.height / (width / height) - 1) < 0.02);
  }
  // Nothing is scaled up, however small or thin it is.
  for (const [width, height] of [[1, 1], [16, 12], [500, 20], [20, 500], [640, 100]]) {
    assert.deepEqual(control.fit(width, height), { width, height });
  }
  // By hand it is the longer side, as it says.
  control.set({ size: 320 });
  assert.deepEqual(control.fit(1920, 400), { width: 320, height: 67 });
  control.set({ size: null });
  assert.deepEqual(control.fit(1280, 960), { width: 640, height: 480 });
});

test("e5: the smallest automatic size leaves a strip its height", () => {
  const control = new RateControl();
  drive(control, { serviceMs: 30, networkMs: 600, seconds: 60 });
  assert.equal(control.size, 320);
  assert.deepEqual(control.fit(1920, 400), { width: 768, height: 160 });
  assert.deepEqual(control.fit(400, 1920), { width: 160, height: 768 });
  assert.deepEqual(control.fit(1920, 1080), fitArea(1920, 1080, 320 * 240));
  // A strip is a strip: neither side grows without end for the other's sake.
  assert.deepEqual(control.fit(20_000, 200), { width: 4096, height: 41 });
  assert.deepEqual(control.fit(30_000, 30_000), { width: 277, height: 277 });
});

test("the shares of a result add up to its age", () => {
  const timings_ms = { queue: 3, decode: 2, prepare: 1, motion: 4, gate: 1, infer: 20, parse: 1, total: 29 };
  const shares = sharesOf({ age_ms: 35, timings_ms }, 60, 45, MODELS);
  assert.deepEqual(shares, { encode: 15, network: 10, wait: 4, prepare: 7, infer: 20, rest: 4 });
  assert.equal(Object.values(shares).reduce((sum, value) => sum + value, 0), 60);
});

test("every problem with a camera says what to do", () => {
  const place = { hostname: "10.0.0.5", port: "8000" };
  const of = (name, message = "") => problemOf(new DOMException(message, name), "camera", place);
  assert.match(of("NotAllowedError").text, /Allow/);
  assert.match(of("NotAllowedError", "Permission denied by system").title, /system/);
  assert.match(of("NotFoundError").text, /sample/);
  assert.match(of("NotReadableError").title, /busy/);
  assert.match(of("InsecureContextError").text, /https.*http:\/\/localhost:8000/);
  assert.match(problemOf(new DOMException("", "NotAllowedError"), "screen", place).text, /again/);
  assert.match(problemOf(new Error("no codec"), "video", place).text, /no codec/);
});

test("an error that is no Error is explained, too", () => {
  const place = { hostname: "10.0.0.5", port: "8000" };
  const problem = problemOf({ name: "OverconstrainedError", message: "", constraint: "deviceId" }, "camera", place);
  assert.match(problem.title, /gone/);
  assert.match(problemOf({ name: "NoVideoTrackError", message: "" }, "video", place).title, /no video/);
});

test("what was seen in one image is not drawn on the next", () => {
  const texts = [{ text: "GATE 7", confidence: 1, polygon: [] }];
  const motion = { score: 0.1, moving_fraction: 0.3, direction_deg: 178, camera: { dx: 0, dy: 0, rotation_deg: 0, zoom: 1 }, grid: null };
  const result = (seq, age_ms = null) => ({ seq, objects: [1], texts, motion, stages: { ocr: { age_ms } } });
  const change = changeOf();
  assert.deepEqual(change.filter(result(1), 100), result(1));
  change.mark(3, 1000);
  assert.equal(change.filter(result(2), 980), null);
  assert.equal(change.filter(result(3), 990), null);
  // The first result of the new image: its motion is between the two images, its text was read in the old one.
  assert.deepEqual(change.filter(result(4, 300), 1020), { ...result(4, 300), texts: [], motion: null }, STAGES);
  assert.deepEqual(change.filter(result(5, 300), 1200), { ...result(5, 300), texts: [] });
  assert.deepEqual(change.filter(result(6, 150), 1200), result(6, 150));
  assert.deepEqual(change.filter(result(7), 1300), result(7));
});

test("codes become text", () => {
  assert.equal(stageText({ status: "stale", age_ms: 430, reason: "throttled" }), "stale 0.4 s, throttled");
  assert.equal(stageText({ status: "disabled", age_ms: null, reason: "off" }), "off");
  assert.equal(stageText({ status: "skipped", age_ms: null, reason: "running" }), "skipped, being read");
  assert.equal(stageText({ status: "disabled", age_ms: null, reason: "not_served" }), "off, no model");
  assert.equal(stageText({ status: "disabled", age_ms: null, reason: "TRITON_X=none" }), "off, TRITON_X=none");
  const person = { class_name: "person", class_id: 0, confidence: 1, track_id: 1, box: { x1: 0, y1: 0, x2: 1, y2: 1 } };
  const text = { text: "GATE 7", confidence: 1, polygon: [] };
  const motion = { score: 0.1, moving_fraction: 0.3, direction_deg: 178, camera: { dx: 0, dy: 0, rotation_deg: 0, zoom: 1 }, grid: null };
  assert.equal(
    inViewText({ objects: [person, person], poses: [], texts: [text], motion }, STAGES),
    "2 × person · text: “GATE 7” · moving left",
  );
  assert.equal(inViewText({ objects: [], poses: [], texts: [], motion: null }, STAGES), "nothing recognised");
});

test("e6: a class without a name is called by its number", () => {
  assert.equal(classLabel("3", 3), "class 3");
  assert.equal(classLabel("", 7), "class 7");
  assert.equal(classLabel(" ", 7), "class 7");
  assert.equal(classLabel("person", 0), "person");
  assert.equal(classLabel("class_3", 3), "class_3");
  assert.equal(classLabel("4x4", 3), "4x4");
  const thing = { class_name: "3", class_id: 3, confidence: 0.94, track_id: 1, box: { x1: 0, y1: 0, x2: 1, y2: 1 } };
  assert.equal(inViewText({ objects: [thing, thing], poses: [], texts: [], motion: null }, STAGES), "2 × class 3");
});

test("e6: what is in view is a sentence, however much there is", () => {
  const objects = Array.from({ length: 80 }, (_, id) => ({ class_name: `thing_${id}`.repeat(40), class_id: id }));
  const texts = Array.from({ length: 60 }, (_, id) => ({ text: `SIGN ${id} ${"W".repeat(500)}` }));
  const words = inViewText({ objects, poses: [], texts, motion: null }, STAGES);
  assert.ok(words.length < 2500, `${words.length}`);
  assert.match(words, /70 more kinds.*50 more texts/);
});

test("e6: a position in a video", () => {
  assert.deepEqual([0, 7.9, 61, 3723].map(clock), ["0:00", "0:07", "1:01", "1:02:03"]);
});

test("e6: the address's parameters take effect, and each wrong one is named with what would be right", () => {
  assert.deepEqual(readQuery(""), { settings: {}, problems: [] });
  assert.deepEqual(readQuery("?confidence=0.5&iou=0.6&classes=person,16").settings, {
    confidence: 0.5,
    iou: 0.6,
    classes: ["person", 16],
  });
  const problem = (search) => {
    const { settings, problems } = readQuery(search);
    assert.deepEqual(settings, {});
    assert.equal(problems.length, 1, search);
    return problems[0];
  };
  for (const near of ["conf=0.9", "confidance=0.9", "Confidence=0.9", "confidense=1"]) {
    assert.match(problem(`?${near}`), /“confidence”/, near);
  }
  assert.match(problem("?class=person"), /“classes”/);
  assert.match(problem("?utm_source=mail"), /confidence, iou and classes/);
  assert.match(problem("?__proto__=1"), /does not know/);
  for (const wrong of ["confidence=7", "confidence=", "confidence=0,5", "confidence=NaN", "iou=-1", "iou=0x"]) {
    assert.match(problem(`?${wrong}`), /a number from 0 to 1/, wrong);
  }
  assert.match(problem("?classes=,"), /names or numbers/);
  assert.ok(problem(`?${"x".repeat(5000)}=1`).length < 200);
  const both = readQuery("?conf=0.9&confidence=0.5");
  assert.deepEqual([both.settings, both.problems.length], [{ confidence: 0.5 }, 1]);
});

/** A file as a browser hands it over. */
function file(name, type, ...parts) {
  return Object.assign(new Blob(parts, { type }), { name });
}

test("e6: a file is a video or an image by its content, or neither", async () => {
  const bytes = (...values) => Uint8Array.from(values.flatMap((value) => (typeof value === "string" ? [...Buffer.from(value)] : value)));
  const videos = [
    file("phone.mp4", "video/mp4", bytes(0, 0, 0, 24, "ftypmp42")),
    file("none", "", bytes(0x1a, 0x45, 0xdf, 0xa3, 1)),
    file("video.txt", "text/plain", bytes(0, 0, 0, 24, "ftypisom")), // whatever its name says
    file("old.mov", "", bytes(0, 0, 0, 8, "wide")),
    file("video.avi", "", bytes("RIFF", 0, 0, 0, 0, "AVI ")),
    file("video.ts", "text/vnd.trolltech.linguist", bytes(0x47), new Uint8Array(187), bytes(0x47), new Uint8Array(187), bytes(0x47)),
    file("sound.mp3", "audio/mpeg", bytes(0xff, 0xfb, 0x90)),
    file("odd.mkv", "video/x-matroska", bytes("?")), // the browser may know better
  ];
  for (const given of videos) assert.equal(await kindOf(given), "video", given.name);
  const images = [
    file("a.jpg", "image/jpeg", bytes(0xff, 0xd8, 0xff, 0xe0)),
    file("b", "", bytes(0x89, "PNG")),
    file("c.avif", "", bytes(0, 0, 0, 24, "ftypavif")),
    file("d.webp", "", bytes("RIFF", 0, 0, 0, 0, "WEBP")),
    file("e.svg", "image/svg+xml", bytes("<svg/>")),
  ];
  for (const given of images) assert.equal(await kindOf(given), "image", given.name);
  const others = [
    file("notes.txt", "text/plain", bytes("a shopping list")),
    file("notes", "", bytes("G", "a".repeat(400))),
    file("paper.pdf", "application/pdf", bytes("%PDF-1.7")),
    file("empty.mp4", "video/mp4"),
    file("one-byte", "", bytes(0x47)),
  ];
  for (const given of others) await assert.rejects(kindOf(given), { name: "UnsupportedFileError", message: new RegExp(given.name) });
  await assert.rejects(
    kindOf({ name: "folder", type: "", slice: () => ({ arrayBuffer: () => Promise.reject(new Error("gone")) }) }),
    /folder/,
  );
  const place = { hostname: "localhost", port: "" };
  const problem = await kindOf(others[0]).catch((error) => problemOf(error, "video", place));
  assert.match(problem.title, /cannot be opened/);
  assert.match(problem.text, /“notes.txt” is neither a video nor an image/);
});

test("e6: a recording gets its duration", () => {
  const header = [0x1a, 0x45, 0xdf, 0xa3, 0x84, 0x42, 0x86, 0x81, 1];
  const unknown = [0x01, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
  const info = (...inside) => [0x15, 0x49, 0xa9, 0x66, 0x80 | inside.length, ...inside];
  const scale = [0x2a, 0xd7, 0xb1, 0x83, 0x0f, 0x42, 0x40]; // a millisecond
  const rest = [0x16, 0x54, 0xae, 0x6b, 0x80, 0x1f, 0x43, 0xb6, 0x75, ...unknown, 0xe7, 0x81, 0];
  const recording = Uint8Array.of(...header, 0x18, 0x53, 0x80, 0x67, ...unknown, ...info(...scale), ...rest);
  const whole = withDuration(recording, 5892);
  const at = Buffer.from(whole).indexOf(Buffer.from([0x44, 0x89, 0x88]));
  assert.equal(new DataView(whole.buffer).getFloat64(at + 3), 5892);
  assert.deepEqual([...whole.subarray(-rest.length)], rest);
  assert.equal(whole.length, recording.length + 7 + 11); // a size of eight bytes, and the duration
  assert.equal(withDuration(whole, 1), null); // it has one already
  // What is no such recording is left alone, wherever it is cut.
  for (let length = 0; length < header.length + 12 + 5 + scale.length; length += 1) {
    assert.equal(withDuration(recording.subarray(0, length), 1), null);
  }
  assert.equal(withDuration(Uint8Array.from(Buffer.from("ftypmp42 and so on")), 1), null);
  const sized = Uint8Array.of(...header, 0x18, 0x53, 0x80, 0x67, 0x8c, ...info(...scale));
  assert.equal(withDuration(sized, 1), null);
});
