// The arrows of the flow are drawn when they change, and laid over the image whenever that is drawn.

import assert from "node:assert/strict";
import { test } from "node:test";

import { paintFlow } from "../../app/web/drawing.js";

/** Counts what is drawn on it. */
class Canvas {
  lines = 0;
  strokes = 0;
  laid = [];
  within = [];
  constructor(width, height) {
    Object.assign(this, { width, height, canvas: this });
  }
  getContext() {
    return this;
  }
  beginPath() {}
  save() {}
  restore() {
    this.restored = this.within.at(-1);
  }
  rect(...place) {
    this.asked = place;
  }
  clip() {
    this.within.push(this.asked);
  }
  moveTo() {}
  lineTo() {
    this.lines += 1;
  }
  stroke() {
    this.strokes += 1;
  }
  drawImage(layer) {
    this.laid.push(layer);
  }
}
globalThis.OffscreenCanvas = Canvas;

const SCENE = { width: 640, height: 480 };
const SHAPE = { kind: "field" };
const OTHER = { kind: "field" };
const PLACE = { x: 0, y: 0, scale: 1, unit: 1 };

function flow(...vectors) {
  return { columns: 2, rows: 1, vectors: Float32Array.from(vectors) };
}

test("arrows are drawn once for each flow, place and canvas", () => {
  const page = new Canvas(640, 480);
  const [first, other] = [flow(9, 0, 0, 9), flow(9, 0, 0, 0)];
  for (let turn = 0; turn < 3; turn += 1) paintFlow(page, SCENE, first, 1, { ...PLACE }, "#b6ff6b", SHAPE);
  const [layer] = page.laid;
  assert.deepEqual([page.laid.length, page.lines, layer.lines, layer.strokes], [3, 0, 6, 2]);
  paintFlow(page, SCENE, other, 1, PLACE, "#b6ff6b", SHAPE);
  assert.deepEqual([layer.lines, layer.strokes], [9, 4]); // an arrow is a line and its head's two; what rests has none
  paintFlow(page, SCENE, other, 1, { ...PLACE, x: 5 }, "#b6ff6b", SHAPE);
  assert.equal(layer.strokes, 6);
  page.width = 320;
  paintFlow(page, SCENE, other, 1, { ...PLACE, x: 5 }, "#b6ff6b", SHAPE);
  assert.deepEqual([layer.strokes, layer.width], [8, 320]);
  const recording = new Canvas(1280, 960);
  paintFlow(recording, SCENE, other, 1, PLACE, "#b6ff6b", SHAPE);
  paintFlow(page, SCENE, other, 1, { ...PLACE, x: 5 }, "#b6ff6b", SHAPE);
  assert.equal(layer.strokes, 8);
  assert.notEqual(recording.laid[0], layer);
});

test("two stages with arrows have a layer each", () => {
  const page = new Canvas(640, 480);
  const [first, other] = [flow(9, 0, 0, 9), flow(9, 0, 0, 0)];
  for (let turn = 0; turn < 2; turn += 1) {
    paintFlow(page, SCENE, first, 1, PLACE, "#b6ff6b", SHAPE);
    paintFlow(page, SCENE, other, 1, PLACE, "#ff0000", OTHER);
  }
  assert.deepEqual(page.laid.map((layer) => layer.strokes), [2, 2, 2, 2]); // none is drawn again
  assert.notEqual(page.laid[0], page.laid[1]);
});

test("e3: arrows are cut off at the image's edge, and fade with their result", () => {
  const page = new Canvas(800, 480);
  paintFlow(page, SCENE, flow(90, 0, 0, 9), 0.5, { x: 80, y: 0, scale: 1, unit: 1 }, "#b6ff6b", SHAPE);
  const [layer] = page.laid;
  assert.deepEqual(layer.within, [[80, 0, 640, 480]]);
  assert.equal(layer.restored, layer.within[0]); // … and nothing else is
  assert.ok(page.globalAlpha > 0 && page.globalAlpha <= 0.5);
});
