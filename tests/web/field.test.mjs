// The vector field's arrows are drawn when they change, and laid over the picture whenever that is drawn.

import assert from "node:assert/strict";
import { test } from "node:test";

import { paintField } from "../../app/web/field.js";

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

const SCENE = { width: 640, height: 480, fieldAlpha: 1 };
const PLACE = { x: 0, y: 0, scale: 1, unit: 1 };

function field(...vectors) {
  return { columns: 2, rows: 1, vectors: Float32Array.from(vectors) };
}

test("arrows are drawn once for each field, place and canvas", () => {
  const page = new Canvas(640, 480);
  const [one, other] = [field(9, 0, 0, 9), field(9, 0, 0, 0)];
  for (let turn = 0; turn < 3; turn += 1) paintField(page, SCENE, one, { ...PLACE });
  const [layer] = page.laid;
  assert.deepEqual([page.laid.length, page.lines, layer.lines, layer.strokes], [3, 0, 6, 2]);
  paintField(page, SCENE, other, PLACE);
  assert.deepEqual([layer.lines, layer.strokes], [9, 4]); // an arrow is a line and its head's two; what rests has none
  paintField(page, SCENE, other, { ...PLACE, x: 5 });
  assert.equal(layer.strokes, 6);
  page.width = 320;
  paintField(page, SCENE, other, { ...PLACE, x: 5 });
  assert.deepEqual([layer.strokes, layer.width], [8, 320]);
  const film = new Canvas(1280, 960);
  paintField(film, SCENE, other, PLACE);
  paintField(page, SCENE, other, { ...PLACE, x: 5 });
  assert.equal(layer.strokes, 8);
  assert.notEqual(film.laid[0], layer);
});

test("e3: arrows are cut off at the picture's edge, and fade with their result", () => {
  const page = new Canvas(800, 480);
  paintField(page, { ...SCENE, fieldAlpha: 0.5 }, field(90, 0, 0, 9), { x: 80, y: 0, scale: 1, unit: 1 });
  const [layer] = page.laid;
  assert.deepEqual(layer.within, [[80, 0, 640, 480]]);
  assert.equal(layer.restored, layer.within[0]); // … and nothing else is
  assert.ok(page.globalAlpha > 0 && page.globalAlpha <= 0.5);
});
