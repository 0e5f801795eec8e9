// The scene between two results.

import assert from "node:assert/strict";
import { test } from "node:test";

import { plugin, tracksOf } from "./stages.mjs";

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

test("coordinates are of the shown image, whatever size was sent", () => {
  const tracks = tracksOf();
  tracks.observe(result([person(100)]), 0, 0);
  const [{ box, class_name, track_id }] = tracks.at(100, SIZE).parts.objects;
  assert.deepEqual(box, { x1: 200, y1: 200, x2: 400, y2: 600 });
  assert.deepEqual([class_name, track_id], ["person", 7]);
});

test("between results a box goes on as it went, so that it lies on the person and not behind", () => {
  const tracks = tracksOf();
  walk(tracks, 100, 1000);
  for (const now of [1090, 1110, 1130, 1160]) {
    const [{ box }] = tracks.at(now, SIZE).parts.objects;
    const truth = 2 * (100 + now / 10);
    assert.ok(Math.abs(box.x1 - truth) < 8, `${now}: ${box.x1} instead of ${truth}`);
  }
});

test("a correction is worked in without a jump", () => {
  const tracks = tracksOf();
  walk(tracks, 100, 1000);
  const before = tracks.at(1180, SIZE).parts.objects[0].box.x1;
  tracks.observe(result([person(190)]), 1100, 1180);
  assert.ok(Math.abs(tracks.at(1180, SIZE).parts.objects[0].box.x1 - before) < 1e-6);
  assert.ok(Math.abs(tracks.at(1700, SIZE).parts.objects[0].box.x1 - before) > 10);
});

test("nothing moves out of the image while answers are missing", () => {
  const tracks = tracksOf();
  walk(tracks, 1000, 5000);
  const [{ box }] = tracks.at(6900, SIZE).parts.objects;
  assert.ok(box.x1 > 2 * 600 && box.x1 <= 2 * (600 + 45), `${box.x1}`);
});

test("what is not seen any more fades, then is gone", () => {
  const tracks = tracksOf();
  walk(tracks, 100, 500);
  tracks.observe(result([]), 600, 680);
  const [{ alpha }] = tracks.at(780, SIZE).parts.objects;
  assert.ok(alpha > 0.3 && alpha < 0.9, `${alpha}`);
  assert.equal(tracks.at(1000, SIZE).parts.objects.length, 0);
});

test("everything goes when no result comes, later where results are rare", () => {
  const [quick, slow] = [tracksOf(), tracksOf()];
  walk(quick, 100, 2000);
  walk(slow, 500, 2000);
  assert.equal(quick.at(2180, SIZE).parts.objects[0].alpha, 1);
  assert.equal(quick.at(2900, SIZE).parts.objects.length, 0);
  assert.ok(slow.at(2900, SIZE).parts.objects[0].alpha > 0.3);
  assert.equal(slow.at(4500, SIZE).parts.objects.length, 0);
});

test("two people who cross keep their own boxes", () => {
  const tracks = tracksOf();
  const seen = (at) => [person(100 + at / 5, { track_id: 1 }), person(300 - at / 5, { track_id: 2, y: 120 })];
  for (let at = 0; at <= 1000; at += 100) tracks.observe(result(seen(at)), at, at);
  const objects = tracks.at(1000, SIZE).parts.objects;
  const left = objects.find(({ track_id }) => track_id === 2);
  const right = objects.find(({ track_id }) => track_id === 1);
  assert.equal(objects.length, 2);
  assert.ok(left.box.x1 < 215 && right.box.x1 > 585, `${left.box.x1} ${right.box.x1}`);
});

test("a thing that gets its number later stays the same thing", () => {
  const tracks = tracksOf();
  tracks.observe(result([person(100, { track_id: null })]), 0, 0);
  tracks.observe(result([person(104)]), 100, 100);
  const objects = tracks.at(150, SIZE).parts.objects;
  assert.equal(objects.length, 1);
  assert.equal(objects[0].track_id, 7);
});

test("skeletons move too", () => {
  const tracks = tracksOf();
  const pose = (x) => ({ ...person(x), keypoints: [{ name: "nose", x: x + 50, y: 120, confidence: 0.8 }] });
  for (let at = 0; at <= 600; at += 100) tracks.observe(result([], { poses: [pose(100 + at / 10)] }), at, at);
  const [{ keypoints }] = tracks.at(650, SIZE).parts.poses;
  assert.ok(Math.abs(keypoints[0].x - 2 * (150 + 65)) < 6, `${keypoints[0].x}`);
  assert.equal(keypoints[0].name, "nose");
});

test("text that was read a while ago is marked", () => {
  const tracks = tracksOf();
  const texts = [{ text: "GATE 7", confidence: 1, polygon: [[10, 20], [60, 20], [60, 40], [10, 40]] }];
  const ocr = (age_ms) => ({ texts, stages: { ocr: { status: "stale", reason: "throttled", age_ms } } });
  tracks.observe(result([], ocr(300)), 0, 0);
  assert.deepEqual(tracks.at(10, SIZE).parts.texts[0].polygon[0], [20, 40]);
  assert.equal(tracks.at(10, SIZE).parts.texts[0].stale, false);
  tracks.observe(result([], ocr(4000)), 100, 100);
  assert.equal(tracks.at(110, SIZE).parts.texts[0].stale, true);
});

test("the flow is in pixels of the image", () => {
  const tracks = tracksOf();
  const data = Buffer.from(Int8Array.of(4, -8, 0, 127).buffer).toString("base64");
  const motion = { score: 0, direction_deg: null, moving_fraction: 0, camera: { dx: 0, dy: 0, rotation_deg: 0, zoom: 1 } };
  tracks.observe(result([], { motion: { ...motion, grid: { columns: 2, rows: 1, scale: 0.25, data } } }), 0, 0);
  const [{ grid: flow }] = tracks.at(10, SIZE).parts.motion;
  assert.deepEqual([flow.columns, flow.rows], [2, 1]);
  assert.deepEqual([...flow.vectors], [2, -4, 0, 63.5]);
  assert.equal(tracks.at(20, SIZE).parts.motion[0].grid, flow); // what draws it knows that it is the same
  assert.deepEqual([...tracks.at(30, { width: 640, height: 480 }).parts.motion[0].grid.vectors], [1, -2, 0, 31.75]);
});

// --- E1: what is old fades, and stands still ---

const POINTS = (x) => [{ name: "nose", x: x + 50, y: 120, confidence: 0.8 }];

/** Someone who walks 200 frame pixels a second; results are `late` ms old when they come. */
function late(age, { every = 100, until = 3000 } = {}) {
  const tracks = tracksOf();
  const at = (ms) => 20 + ms / 5;
  for (let ms = 0; ms <= until; ms += every) {
    const poses = [{ ...person(at(ms)), keypoints: POINTS(at(ms)) }];
    const motion = { score: 0, direction_deg: null, moving_fraction: 0, camera: { dx: 0, dy: 0 }, grid: null };
    tracks.observe(result([person(at(ms)), { ...person(at(ms)), class_id: 1, class_name: "face" }], { poses, motion }), ms, ms + age);
  }
  return { tracks, seen: at(until), perMs: 1 / 5, last: until };
}

test("e1: nothing goes on for more than 300 ms beyond the frame that showed it", () => {
  for (const age of [0, 50, 200, 299, 300, 500, 1000, 3000]) {
    const { tracks, seen, perMs, last } = late(age);
    for (let wait = 0; wait <= 390; wait += 30) {
      const now = last + age + wait;
      const { objects, poses } = tracks.at(now, { width: 640, height: 480 }).parts;
      const farthest = seen + 300 * perMs + 0.01;
      for (const { box } of [...objects, ...poses]) assert.ok(box.x1 <= farthest, `${age}+${wait}: ${box.x1} > ${farthest}`);
      for (const { keypoints } of poses) assert.ok(keypoints[0].x <= farthest + 50, `${age}+${wait}`);
    }
  }
});

test("e1: 300 ms after its frame a box stands still", () => {
  const tracks = tracksOf();
  walk(tracks, 100, 1000); // the last result came at 1080, its correction is worked in by 1600
  const places = [1600, 1650, 1700, 1790].map((now) => {
    tracks.observe(result([person(200)]), 1000, now); // another result of the same frame changes nothing
    return tracks.at(now, SIZE).parts.objects[0].box.x1;
  });
  for (const place of places) assert.ok(Math.abs(place - 2 * (200 + 30)) < 0.5, `${places}`);
});

test("e1: what is a second late is drawn in no full colour, what is fresh is", () => {
  const fresh = late(80);
  const { objects, poses } = fresh.tracks.at(fresh.last + 100, SIZE).parts;
  assert.deepEqual([...objects, ...poses].map(({ alpha }) => alpha), [1, 1, 1]);
  let before = 1;
  for (const age of [400, 600, 800, 1000]) {
    const { tracks, last } = late(age);
    const scene = tracks.at(last + age, SIZE).parts;
    for (const { alpha } of [...scene.objects, ...scene.poses]) assert.ok(alpha < before && alpha > 0.2, `${age}: ${alpha}`);
    assert.ok(scene.motion[0].alpha < before);
    before = scene.objects[0].alpha;
  }
  assert.ok(before < 0.5);
  assert.ok(late(5000).tracks.at(8000, SIZE).parts.objects[0].alpha > 0.2); // still a hint
});

test("e1: it fades between two results, too", () => {
  const tracks = tracksOf();
  walk(tracks, 1000, 5000); // a result a second, 80 ms old
  const alphas = [5100, 5300, 5600, 6000].map((now) => tracks.at(now, SIZE).parts.objects[0].alpha);
  assert.equal(alphas[0], 1);
  assert.deepEqual(alphas, [...alphas].sort((a, b) => b - a));
  assert.ok(alphas[3] < 0.5);
});

// --- E2: texts go with the camera, and fade ---

const SIGN = { text: "GATE 7", confidence: 1, polygon: [[300, 220], [340, 220], [340, 240], [300, 240]] };

function signs({ age = null, status = "stale", camera = null, texts = [SIGN] } = {}) {
  const motion = camera && { score: 0, direction_deg: null, moving_fraction: 0, camera, grid: null };
  return result([], { texts, motion, stages: { ocr: { status, reason: "throttled", age_ms: age } } });
}

function corner(tracks, now, size = { width: 640, height: 480 }) {
  return tracks.at(now, size).parts.texts[0].polygon[0];
}

function near([x, y], [wantedX, wantedY], within = 0.01) {
  assert.ok(Math.hypot(x - wantedX, y - wantedY) <= within, `${x}, ${y} instead of ${wantedX}, ${wantedY}`);
}

test("e2: a text goes with the camera's shift, summed up since its frame", () => {
  const tracks = tracksOf();
  for (let ms = 0; ms <= 400; ms += 100) tracks.observe(signs({ camera: { dx: 30, dy: -3 }, texts: [] }), ms, ms);
  // Read at 200, in the result of 500: three steps since. (Ages are measured at the service: a little off.)
  tracks.observe(signs({ camera: { dx: 30, dy: -3 }, age: 304 }), 500, 500);
  near(corner(tracks, 500), [390, 211]);
  tracks.observe(signs({ camera: { dx: -10, dy: 0 }, age: 397 }), 600, 600);
  near(corner(tracks, 1200 - 50), [380 + 3 * (50 / 3), 211 - 3 * 2], 25); // and on for 300 ms at most
  assert.deepEqual(corner(tracks, 980), corner(tracks, 980));
});

test("e2: between results it goes on with the camera, for 300 ms at most", () => {
  const tracks = tracksOf();
  for (let ms = 0; ms <= 600; ms += 100) tracks.observe(signs({ camera: { dx: 10, dy: 0 }, age: ms }), ms, ms);
  const at = (now) => corner(tracks, now)[0];
  near([at(650), 0], [365, 0], 0.5);
  near([at(900), 0], [390, 0], 0.5);
  near([at(990), 0], [390, 0], 0.5);
});

test("e2: a text turns and grows about the centre of the image as the camera does", () => {
  const tracks = tracksOf();
  const camera = { dx: 0, dy: 0, rotation_deg: 90, zoom: 2 };
  tracks.observe(signs({ camera: null, texts: [] }), 0, 0);
  tracks.observe(signs({ camera, age: 100 }), 100, 100);
  // (300, 220) is (-20, -20) from the middle; a quarter clockwise and twice as far: (40, -40).
  near(corner(tracks, 100), [360, 200]);
  tracks.observe(signs({ camera: { dx: 7, dy: 0, rotation_deg: -90, zoom: 0.5 }, age: 200 }), 200, 200);
  tracks.observe(signs({ camera: { dx: 0, dy: 0, rotation_deg: 0, zoom: 1 }, age: 900 }), 900, 900);
  near(corner(tracks, 1150, SIZE), [2 * 307, 2 * 220], 3);
});

test("e2: a text that has not changed is where it was read anew", () => {
  const tracks = tracksOf();
  for (let ms = 0; ms <= 500; ms += 100) tracks.observe(signs({ camera: { dx: 1, dy: 1 }, status: "ok" }), ms, ms);
  near(corner(tracks, 500), [300, 220], 3); // `ok`: where it stood nothing has changed
});

test("e2: without the camera's motion a text stays, and outside the image there is none", () => {
  const tracks = tracksOf();
  for (let ms = 0; ms <= 300; ms += 100) tracks.observe(signs({ age: ms }), ms, ms);
  near(corner(tracks, 350), [300, 220]);
  for (let ms = 400; ms <= 700; ms += 100) tracks.observe(signs({ age: ms, camera: { dx: 150, dy: 0 } }), ms, ms);
  assert.deepEqual(tracks.at(1000, SIZE).parts.texts, []);
});

test("e2: texts fade with the age of their frame and of the reading", () => {
  const alpha = (age, late) => {
    const tracks = tracksOf();
    tracks.observe(signs({ age }), 0, late);
    return tracks.at(late, SIZE).parts.texts[0].alpha;
  };
  assert.equal(alpha(0, 100), 1);
  const old = [500, 1000, 2000, 4000].map((age) => alpha(age, 100));
  assert.deepEqual(old, [...old].sort((a, b) => b - a));
  assert.ok(old[1] < 1 && old[3] < 0.5 && old[3] > 0.2, `${old}`);
  assert.ok(alpha(0, 1000) < 0.5);
});

test("e2: a new reading of the same text does not jump", () => {
  const tracks = tracksOf();
  tracks.observe(signs({ status: "ok" }), 0, 50);
  const polygon = SIGN.polygon.map(([x, y]) => [x + 40, y]);
  tracks.observe(signs({ status: "ok", texts: [{ ...SIGN, polygon }] }), 100, 150);
  near(corner(tracks, 150), [300, 220], 0.5);
  near(corner(tracks, 600), [340, 220], 0.5);
});

// --- E3: arrows ---

test("e3: the camera's motion is taken out of the arrows", () => {
  const data = (...pairs) => Buffer.from(Int8Array.from(pairs).buffer).toString("base64");
  const arrows = (camera, grid) => {
    const tracks = tracksOf();
    const motion = { score: 0, direction_deg: null, moving_fraction: 0, camera, grid: { scale: 1, ...grid } };
    tracks.observe(result([], { motion }), 0, 0);
    return [...tracks.at(10, { width: 640, height: 480 }).parts.motion[0].grid.vectors].map((value) => Math.round(value * 10) / 10 + 0);
  };
  // All goes left by 5, one cell by 9 more; where there is nothing to see there is no motion, the camera's neither.
  assert.deepEqual(
    arrows({ dx: -5, dy: 0 }, { columns: 4, rows: 1, data: data(-5, 0, -14, 0, 0, 0, -5, 2) }),
    [0, 0, -9, 0, 0, 0, 0, 2],
  );
  // A zoom of 10% about the middle: cells 160 pixels from it go out by 16.
  assert.deepEqual(
    arrows({ dx: 0, dy: 0, rotation_deg: 0, zoom: 1.1 }, { columns: 2, rows: 1, data: data(-16, 0, 16, 5) }),
    [0, 0, 0, 5],
  );
});
