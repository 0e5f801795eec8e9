// From a source to the service: what is sent, why something is not, and what becomes of frames that are being encoded.

import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { Encoder, Sender } from "../../app/web/sender.js";

const JPEG = Uint8Array.of(0xff, 0xd8, 0xff);

/** A sender of parts that the test holds. */
function sending() {
  const client = {
    state: "live",
    paused: false,
    wantsFrame: true,
    sent: 0,
    sendFrame() {
      return this.wantsFrame ? ++this.sent : null;
    },
  };
  const encoder = {
    busy: false,
    pending: [],
    encode() {
      return new Promise((resolve, reject) => this.pending.push({ resolve: () => resolve(JPEG), reject }));
    },
  };
  const control = { due: () => true, sent() {}, fit: (width, height) => ({ width, height }), quality: 0.8 };
  const sender = new Sender(client, encoder, control);
  const problems = [];
  sender.onproblem = (problem) => problems.push(problem);
  return { client, encoder, control, sender, problems };
}

function source() {
  return { width: 640, height: 480, view: {}, onframe() {} };
}

const settle = () => new Promise((resolve) => setImmediate(resolve));

test("frames that are not sent are counted by reason", async () => {
  const { client, encoder, control, sender, problems } = sending();
  const camera = source();
  sender.attach(camera);
  const frame = (change, parts = client) => {
    const before = Object.fromEntries(Object.keys(change).map((key) => [key, parts[key]]));
    Object.assign(parts, change);
    camera.onframe(0);
    Object.assign(parts, before);
  };
  frame({ paused: true, wantsFrame: false });
  frame({ state: "waiting", wantsFrame: false });
  frame({ wantsFrame: false });
  frame({ wantsFrame: false });
  frame({ busy: true }, encoder);
  frame({ due: () => false }, control);
  camera.onframe(0);
  encoder.pending.pop().reject(new Error("no pixels"));
  await settle();
  camera.onframe(0);
  encoder.pending.pop().resolve();
  await settle();
  camera.onframe(0);
  client.wantsFrame = false; // while it was encoded
  encoder.pending.pop().resolve();
  await settle();
  const skipped = {
    hidden: 1,
    "not connected": 1,
    "no credit": 3,
    "encoder busy": 1,
    "rate limit": 1,
    "not encoded": 1,
  };
  assert.deepEqual(sender.counts, { frames: 9, sent: 1, skipped });
  assert.deepEqual(problems, ["no pixels"]);
  sender.reset();
  assert.deepEqual(sender.counts, { frames: 0, sent: 0, skipped: {} });
});

test("a frame of a source that was left while it was encoded is not sent", async () => {
  const { client, encoder, sender, problems } = sending();
  const [first, second] = [source(), source()];
  sender.attach(first);
  first.onframe(0);
  first.onframe(0);
  sender.attach(second);
  encoder.pending[0].resolve();
  encoder.pending[1].reject(new Error("the video is gone"));
  first.onframe(0); // its later calls are not of this source
  await settle();
  assert.deepEqual(sender.counts, { frames: 2, sent: 0, skipped: { "source changed": 1, "not encoded": 1 } });
  assert.deepEqual([client.sent, problems], [0, []]);
  second.onframe(0);
  encoder.pending[2].resolve();
  await settle();
  assert.equal(client.sent, 1);
});

test("e6: a frame from before a seek in a video is not sent after it", async () => {
  const { client, encoder, sender } = sending();
  const video = source();
  sender.attach(video);
  video.onframe(0);
  sender.discardPending();
  encoder.pending[0].resolve();
  await settle();
  video.onframe(0);
  encoder.pending[1].resolve();
  await settle();
  assert.deepEqual([client.sent, sender.counts.skipped], [1, { "source changed": 1 }]);
});

class FakeWorker {
  static last;
  posted = [];
  constructor() {
    FakeWorker.last = this;
  }
  postMessage(message) {
    this.posted.push(message);
  }
}

/** A frame that takes its time, as a bitmap of a canvas does. */
class Bitmap {
  closed = 0;
  close() {
    this.closed += 1;
  }
}

beforeEach(() => {
  globalThis.Worker = FakeWorker;
  globalThis.OffscreenCanvas = class {
    convertToBlob() {}
  };
  globalThis.document = { createElement: () => ({ getContext: () => null, toBlob: (done) => done(new Blob(["here"])) }) };
});

test("a frame that was taken for a worker which died meanwhile is closed", async () => {
  const bitmap = new Bitmap();
  let taken;
  globalThis.createImageBitmap = () => new Promise((resolve) => (taken = resolve));
  const encoder = new Encoder();
  const encoding = encoder.encode({}, { width: 4, height: 4, quality: 0.8 });
  FakeWorker.last.onerror({ message: "out of memory" });
  taken(bitmap);
  await assert.rejects(encoding, /worker failed/);
  assert.deepEqual([bitmap.closed, FakeWorker.last.posted.length, encoder.busy], [1, 0, false]);
  const jpeg = await encoder.encode({}, { width: 4, height: 4, quality: 0.8 }); // from here on without it
  assert.equal(Buffer.from(jpeg).toString(), "here");
  assert.equal(encoder.where, "main thread");
});

test("a worker's answer is the frame's JPEG, and its failure rejects", async () => {
  globalThis.createImageBitmap = async () => new Bitmap();
  const encoder = new Encoder();
  const wanted = { width: 4, height: 4, quality: 0.8 };
  const encoding = encoder.encode({}, wanted);
  await settle();
  const [{ id }] = FakeWorker.last.posted;
  FakeWorker.last.onmessage({ data: { id, bytes: JPEG.buffer } });
  assert.deepEqual(await encoding, JPEG);
  const next = encoder.encode({}, wanted);
  await settle();
  FakeWorker.last.onerror({ message: "out of memory" });
  await assert.rejects(next, /out of memory/);
});
