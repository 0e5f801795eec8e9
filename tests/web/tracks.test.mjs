// What is drawn between two results.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Tracks } from "../../app/web/tracks.js";

const SIZE = { width: 1280, height: 960 };

function result(objects, more = {}) {
  return {
    image: { width: 640, height: 480 },
    objects,
    poses: [],
    texts: [],
    motion: null,
    stages: { ocr: { status: "ok", reason: null, age_ms: null } },
    ...more,
  };
}

function person(x, { track_id = 7, y = 100 } = {}) {
  const box = { x1: x, y1: y, x2: x + 100, y2: y + 200 };
  return { class_id: 0, class_name: "person", confidence: 0.9, track_id, box };
}

/** A person who walks 100 frame pixels a second to the right, seen every `every` ms with 80 ms of delay. */
function walk(tracks, every, until) {
  for (let at = 0; at <= until; at += every) tracks.observe(result([person(100 + at / 10)]), at, at + 80);
}

test("coordinates are of the picture that is shown, whatever size was sent", () => {
  const tracks = new Tracks();
  tracks.observe(result([person(100)]), 0, 0);
  const [{ box, class_name, track_id }] = tracks.at(100, SIZE).objects;
  assert.deepEqual(box, { x1: 200, y1: 200, x2: 400, y2: 600 });
  assert.deepEqual([class_name, track_id], ["person", 7]);
});

test("between results a box goes on as it went, so that it lies on the person and not behind", () => {
  const tracks = new Tracks();
  walk(tracks, 100, 1000);
  for (const now of [1090, 1110, 1130, 1160]) {
    const [{ box }] = tracks.at(now, SIZE).objects;
    const truth = 2 * (100 + now / 10);
    assert.ok(Math.abs(box.x1 - truth) < 8, `${now}: ${box.x1} instead of ${truth}`);
  }
});

test("a correction is worked in without a jump", () => {
  const tracks = new Tracks();
  walk(tracks, 100, 1000);
  const before = tracks.at(1180, SIZE).objects[0].box.x1;
  tracks.observe(result([person(190)]), 1100, 1180);
  assert.ok(Math.abs(tracks.at(1180, SIZE).objects[0].box.x1 - before) < 1e-6);
  assert.ok(Math.abs(tracks.at(1700, SIZE).objects[0].box.x1 - before) > 10);
});

test("nothing runs out of the picture while answers are missing", () => {
  const tracks = new Tracks();
  walk(tracks, 1000, 5000);
  const [{ box }] = tracks.at(6900, SIZE).objects;
  assert.ok(box.x1 > 2 * 600 && box.x1 <= 2 * (600 + 45), `${box.x1}`);
});

test("what is not seen any more fades, then is gone", () => {
  const tracks = new Tracks();
  walk(tracks, 100, 500);
  tracks.observe(result([]), 600, 680);
  const [{ alpha }] = tracks.at(780, SIZE).objects;
  assert.ok(alpha > 0.3 && alpha < 0.9, `${alpha}`);
  assert.equal(tracks.at(1000, SIZE).objects.length, 0);
});

test("everything fades when no result comes, later where results are rare", () => {
  const [quick, slow] = [new Tracks(), new Tracks()];
  walk(quick, 100, 2000);
  walk(slow, 500, 2000);
  assert.equal(quick.at(2180, SIZE).objects[0].alpha, 1);
  assert.equal(quick.at(2900, SIZE).objects.length, 0);
  assert.equal(slow.at(2900, SIZE).objects[0].alpha, 1);
  assert.equal(slow.at(4500, SIZE).objects.length, 0);
});

test("two people who cross keep their own boxes", () => {
  const tracks = new Tracks();
  const seen = (at) => [person(100 + at / 5, { track_id: 1 }), person(300 - at / 5, { track_id: 2, y: 120 })];
  for (let at = 0; at <= 1000; at += 100) tracks.observe(result(seen(at)), at, at);
  const objects = tracks.at(1000, SIZE).objects;
  const left = objects.find(({ track_id }) => track_id === 2);
  const right = objects.find(({ track_id }) => track_id === 1);
  assert.equal(objects.length, 2);
  assert.ok(left.box.x1 < 215 && right.box.x1 > 585, `${left.box.x1} ${right.box.x1}`);
});

test("a thing that gets its number later stays the same thing", () => {
  const tracks = new Tracks();
  tracks.observe(result([person(100, { track_id: null })]), 0, 0);
  tracks.observe(result([person(104)]), 100, 100);
  const objects = tracks.at(150, SIZE).objects;
  assert.equal(objects.length, 1);
  assert.equal(objects[0].track_id, 7);
});

test("skeletons move too", () => {
  const tracks = new Tracks();
  const pose = (x) => ({ ...person(x), keypoints: [{ name: "nose", x: x + 50, y: 120, confidence: 0.8 }] });
  for (let at = 0; at <= 600; at += 100) tracks.observe(result([], { poses: [pose(100 + at / 10)] }), at, at);
  const [{ keypoints }] = tracks.at(650, SIZE).poses;
  assert.ok(Math.abs(keypoints[0].x - 2 * (150 + 65)) < 6, `${keypoints[0].x}`);
  assert.equal(keypoints[0].name, "nose");
});

test("text that was read a while ago is marked", () => {
  const tracks = new Tracks();
  const texts = [{ text: "GATE 7", confidence: 1, polygon: [[10, 20], [60, 20], [60, 40], [10, 40]] }];
  const ocr = (age_ms) => ({ texts, stages: { ocr: { status: "stale", reason: "throttled", age_ms } } });
  tracks.observe(result([], ocr(300)), 0, 0);
  assert.deepEqual(tracks.at(10, SIZE).texts[0].polygon[0], [20, 40]);
  assert.equal(tracks.at(10, SIZE).texts[0].stale, false);
  tracks.observe(result([], ocr(4000)), 100, 100);
  assert.equal(tracks.at(110, SIZE).texts[0].stale, true);
});

test("the vector field is in pixels of the picture", () => {
  const tracks = new Tracks();
  const data = Buffer.from(Int8Array.of(4, -8, 0, 127).buffer).toString("base64");
  const motion = { score: 0, direction_deg: null, moving_fraction: 0, camera: { dx: 0, dy: 0 } };
  tracks.observe(result([], { motion: { ...motion, grid: { columns: 2, rows: 1, scale: 0.25, data } } }), 0, 0);
  const { field } = tracks.at(10, SIZE);
  assert.deepEqual([field.columns, field.rows], [2, 1]);
  assert.deepEqual([...field.vectors], [2, -4, 0, 63.5]);
  assert.equal(tracks.at(20, SIZE).field, field); // what draws it knows that it is the same
  assert.deepEqual([...tracks.at(30, { width: 640, height: 480 }).field.vectors], [1, -2, 0, 31.75]);
});
