// Stages that the page has never heard of are shown as they declare it.

import assert from "node:assert/strict";
import { test } from "node:test";

import { paint } from "../../app/web/drawing.js";
import { figureText, interpreted, modelWithClasses } from "../../app/web/stages.js";
import { template } from "../../app/web/templates.js";
import { inViewText } from "../../app/web/text.js";
import { DECLARED, MODELS, STAGES, plugin, tracksOf } from "./stages.mjs";

const SIZE = { width: 640, height: 480 };
const PLACE = { x: 0, y: 0, scale: 1, unit: 1 };

/** A result of a service with one more stage. */
function result(field, value, more = {}) {
  return { image: SIZE, [field]: value, stages: {}, ...more };
}

/** What is drawn: the colours of lines and areas, with the path and the opacity of each, and the texts with their places. */
class Canvas {
  done = [];
  path = [];
  set = {};
  canvas = { width: 640, height: 480 };
  save() {}
  restore() {}
  clip() {}
  rect() {}
  closePath() {
    this.path.push("closed");
  }
  beginPath() {
    this.path = [];
  }
  moveTo(...to) {
    this.path.push(to);
  }
  lineTo(...to) {
    this.path.push(to);
  }
  arc() {}
  roundRect(...at) {
    this.path.push(at);
  }
  stroke() {
    this.done.push({ what: "stroke", colour: this.strokeStyle, path: this.path, dash: this.dash ?? [] });
  }
  fill() {
    this.done.push({ what: "fill", colour: this.fillStyle, path: this.path, alpha: this.globalAlpha });
  }
  fillRect() {}
  setLineDash(dash) {
    this.dash = dash;
  }
  measureText(text) {
    return { width: 7 * text.length };
  }
  fillText(text, x, y) {
    this.done.push({ what: "text", text, x, y, colour: this.fillStyle });
  }
  of(what) {
    return this.done.filter((one) => one.what === what);
  }
}

function painted(stages, tell) {
  const tracks = tracksOf(stages);
  tell(tracks);
  const canvas = new Canvas();
  const scene = tracks.at(150, SIZE);
  paint(canvas, scene, PLACE);
  return { canvas, scene };
}

const SQUARE = [[100, 100], [200, 100], [200, 200], [100, 200]];
const BOX = { x1: 100, y1: 100, x2: 200, y2: 200 };

test("a colour that a plug-in measures is drawn in that colour", () => {
  const shapes = [{ kind: "polygon", at: "outline", label: "{hex} {share:percent}", colour: "{rgb}" }];
  const stages = [...STAGES, ...plugin("average_colour", "colours", shapes)];
  const value = [{ outline: SQUARE, rgb: [250, 9.6, 0], hex: "#fa0a00", share: 0.25, track_id: 4 }];
  const { canvas, scene } = painted(stages, (tracks) => {
    for (const at of [0, 50, 100]) tracks.observe(result("colours", value, { objects: [], poses: [], texts: [], motion: null }), at, at);
  });
  assert.deepEqual(canvas.of("stroke").map(({ colour }) => colour), ["rgb(0 0 0 / 0.6)", "rgb(250 10 0)"]);
  assert.deepEqual(canvas.of("stroke")[1].path, [...SQUARE, "closed"]);
  assert.deepEqual(canvas.of("text").map(({ text, colour }) => [text, colour]), [["#fa0a00 25%", "rgb(250 10 0)"]]);
  assert.deepEqual(scene.parts.colours.map(({ outline, alpha }) => [outline, alpha]), [[SQUARE, 1]]);
  assert.equal(inViewText(result("colours", value), stages), "hex: “#fa0a00”");
});

test("a mask is filled half transparent, and its outline goes with its box", () => {
  const label = "{class_name} {confidence} {track_id}";
  const stages = plugin("cut", "segments", [{ kind: "mask", at: "polygons", label, colour: "class" }]);
  const seen = (x, points) => {
    const box = { x1: x, y1: 100, x2: x + 100, y2: 200 };
    const polygons = [points.map(([dx, dy]) => [x + dx, 100 + dy])];
    return result("segments", [{ class_id: 3, class_name: "cat", confidence: 0.9, box, polygons, track_id: 1 }]);
  };
  const outlines = [[[0, 0], [100, 0], [100, 100]], [[0, 0], [100, 0], [100, 100], [50, 100]], [[0, 0], [50, 0], [100, 0], [100, 100], [0, 100]]];
  const { canvas, scene } = painted(stages, (tracks) => {
    for (let at = 0; at <= 140; at += 20) tracks.observe(seen(100 + at, outlines[(at / 20) % 3]), at, at);
  });
  const [{ box, polygons, alpha }] = scene.parts.segments;
  assert.ok(box.x1 > 245 && box.x1 < 252, `${box.x1}`); // at 240 in the last result, 10 ms ago
  assert.equal(polygons[0].length, outlines[1].length);
  assert.ok(Math.abs(polygons[0][0][0] - box.x1) < 1e-6 && Math.abs(polygons[0][2][0] - box.x2) < 1e-6);
  assert.equal(alpha, 1);
  const [fill] = canvas.of("fill");
  assert.ok(fill.alpha > 0.2 && fill.alpha < 0.6);
  assert.equal(fill.colour, canvas.of("stroke")[1].colour);
  assert.deepEqual(canvas.of("text").map(({ text }) => text), ["cat 90% #1"]);
});

test("an oriented box turns, whichever corner comes first", () => {
  const stages = plugin("tilted", "oriented", [{ kind: "polygon", at: "corners", label: "{class_name}" }]);
  const corners = (degrees, first) => {
    const all = [0, 1, 2, 3].map((corner) => {
      const angle = ((degrees + 90 * corner + 30) * Math.PI) / 180;
      return [320 + 100 * Math.cos(angle), 240 + 100 * Math.sin(angle)];
    });
    return [...all.slice(first), ...all.slice(0, first)];
  };
  const tracks = tracksOf(stages);
  for (let at = 0; at <= 600; at += 50) {
    const box = { x1: 200, y1: 120, x2: 440, y2: 360 };
    const entry = { class_id: 0, class_name: "ship", box, corners: corners(at / 50, (at / 50) % 4), track_id: 9 };
    tracks.observe(result("oriented", [entry]), at, at);
  }
  const [{ corners: shown }] = tracks.at(625, SIZE).parts.oriented;
  const [first] = corners(12.5, 0);
  assert.ok(Math.hypot(shown[0][0] - first[0], shown[0][1] - first[1]) < 2, `${shown[0]} ${first}`);
});

test("labels of the whole image stand one below the other in its corner", () => {
  const shapes = [{ kind: "label", label: "{top.0.class_name} {top.0.confidence}" }];
  const stages = plugin("kind", "classifications", shapes);
  const of = (class_id, class_name, box = null) => ({ box, track_id: null, top: [{ class_id, class_name, confidence: 0.5 }] });
  const { canvas } = painted(stages, (tracks) => {
    tracks.observe(result("classifications", [of(1, "harbour"), of(2, "sea"), of(3, "", BOX)]), 0, 0);
  });
  const texts = canvas.of("text");
  assert.deepEqual(texts.map(({ text }) => text), ["harbour 50%", "sea 50%", "class 3 50%"]);
  assert.ok(texts[0].x < 20 && texts[0].y < 20 && texts[1].x === texts[0].x && texts[1].y > texts[0].y + 19);
  assert.ok(texts[2].x > 90); // where its box is
  assert.equal(new Set(texts.map(({ colour }) => colour)).size, 3);
  assert.equal(inViewText(result("classifications", [of(1, "harbour")]), stages), "1 harbour");
});

test("points have their lines from the stage's model, whatever they are", () => {
  const described = [{ name: "hand", title: "Hands", description: "", field: "hands", shapes: [{ kind: "points", at: "dots", least: 0.5, lines: "bones.of" }] }];
  const stages = interpreted(described, { hand: { name: "h", bones: { of: [[0, 1], [1, 2]] } } });
  const dots = [[10, 10, 0.9], [20, 20, 0.6], [30, 30, 0.4]].map(([x, y, confidence]) => ({ name: "", x, y, confidence }));
  const { canvas } = painted(stages, (tracks) => tracks.observe(result("hands", [{ dots }]), 0, 0));
  const lines = canvas.of("stroke").filter(({ path, colour }) => path.length === 2 && colour === "#ffffff");
  assert.deepEqual(lines.map(({ path }) => path), [[[10, 10], [20, 20]]]);
  assert.equal(inViewText(result("hands", [{ dots }, { dots }]), stages), "2 hands");
});

test("what is drawn where a stage says no box is there: lines, arrows, the entry itself", () => {
  const described = [
    { name: "a", title: "", description: "", field: "paths", shapes: [{ kind: "polyline", at: "", colour: "#123456" }] },
    { name: "b", title: "", description: "", field: "drift", shapes: [{ kind: "arrow", at: "by", colour: "#ff0000" }] },
    { name: "c", title: "", description: "", field: "later", shapes: [{ kind: "hologram", at: "x" }] },
  ];
  globalThis.OffscreenCanvas = class extends Canvas {
    getContext() {
      return this;
    }
  };
  const laid = [];
  Canvas.prototype.drawImage = (layer) => laid.push(layer);
  const { canvas, scene } = painted(interpreted(described, {}), (tracks) => {
    tracks.observe({ image: SIZE, paths: [[[1, 2], [30, 40]]], drift: { by: { dx: 40, dy: 0 } }, later: [{ x: 1 }], stages: {} }, 0, 0);
  });
  assert.deepEqual(canvas.of("stroke").map(({ path, colour }) => [path, colour])[1], [[[1, 2], [30, 40]], "#123456"]);
  assert.deepEqual(laid[0].of("stroke")[1].colour, "#ff0000");
  assert.deepEqual(laid[0].of("stroke")[1].path.slice(0, 2), [[320, 240], [420, 240]]); // from the middle
  assert.equal(scene.blank, false);
});

test("what has no geometry, or none that can be drawn, is not drawn and stops nothing", () => {
  const shapes = [{ kind: "polygon", at: "p" }, { kind: "points", at: "q" }, { kind: "box", at: "r" }, { kind: "mask", at: "s.t" }];
  for (const entry of [{}, { p: null, q: [null], r: { x1: 1 }, s: 4 }, { p: [[]], q: [], r: null, s: { t: [["x"]] } }, null, 7]) {
    const { canvas, scene } = painted(plugin("odd", "odd", shapes), (tracks) => {
      for (const at of [0, 50, 100]) tracks.observe(result("odd", [entry]), at, at);
    });
    assert.deepEqual(canvas.of("text"), []);
    assert.ok(scene.parts.odd.length <= 1);
  }
  const { scene } = painted(plugin("none", "none", shapes), (tracks) => tracks.observe({ image: SIZE, stages: {} }, 0, 0));
  assert.equal(scene.blank, true);
});

test("what a stage found in an earlier frame goes with the camera, its box too", () => {
  const stages = [...STAGES, ...plugin("slow", "things", [{ kind: "box", at: "box", label: "{name}" }])];
  const camera = { dx: 10, dy: 0, rotation_deg: 0, zoom: 1 };
  const motion = { score: 0, direction_deg: null, moving_fraction: 0, camera, grid: null };
  const tracks = tracksOf(stages);
  const more = (age_ms) => ({ objects: [], poses: [], texts: [], motion, stages: { slow: { status: "stale", reason: null, age_ms } } });
  for (let at = 0; at <= 500; at += 100) tracks.observe(result("things", [{ name: "a", box: BOX }], more(at)), at, at);
  const [{ box, alpha, stale }] = tracks.at(500, SIZE).parts.things;
  assert.ok(Math.abs(box.x1 - 150) < 3 && Math.abs(box.x2 - 250) < 3, `${box.x1}`);
  assert.ok(alpha < 1 && !stale);
});

test("templates: formats, what is missing, what is shortened", () => {
  const entry = { class_name: "dog", class_id: 16, confidence: 0.876, track_id: null, angle_deg: 12.3456, n: 3, tags: ["a", "b"], note: "a  b " };
  const text = (written, of = entry) => template(written).text(of);
  assert.equal(text("{class_name} {confidence} {track_id}"), "dog 88%");
  assert.equal(text("{track_id} {class_name}", { ...entry, track_id: 4 }), "#4 dog");
  assert.equal(text("{track_id} {class_name}"), "dog");
  assert.equal(text("{angle_deg} {angle_deg:.1} {n} {tags}"), "12.35 12.3 3 a, b");
  assert.equal(text("at {angle_deg:arrow} {angle_deg:direction}", { angle_deg: 92 }), "at ↓ down");
  assert.equal(text("{missing.x} {toString}"), "");
  assert.equal(text("{class_name}", { class_name: "16", class_id: 16 }), "class 16");
  assert.deepEqual(template("{class_name}: {confidence} {track_id}").label({ ...entry, track_id: 2 }), { name: "dog", figures: ": 88% #2" });
  assert.deepEqual(template("{note}").label(entry), { name: "a  b ", figures: "" });
  assert.deepEqual(template("{confidence}").label(entry), { name: "", figures: "88%" });
  assert.deepEqual(template("a {n} b").label(entry), { name: "a 3 b", figures: "" });
});

test("figures stand beside the image, and only where there is something to say", () => {
  const stage = STAGES.find(({ figures }) => figures.length);
  const motion = { score: 0.01234, direction_deg: 178, moving_fraction: 0.3 };
  const of = (changes) => ({ motion: changes && { ...motion, ...changes } });
  assert.equal(figureText(stage, "figures", of({})), "30% ←");
  assert.equal(figureText(stage, "figures", of({ direction_deg: null })), "30%");
  assert.equal(figureText(stage, "status", of({})), "score 0.012");
  assert.equal(figureText(stage, "sentence", of({ direction_deg: null })), "moving");
  assert.equal(figureText(stage, "sentence", of({ moving_fraction: 0.01 })), "");
  assert.equal(figureText(stage, "figures", of(null)), "");
  assert.equal(figureText(stage, "figures", null), "");
  const [counted] = plugin("crowd", "people", [], { figures: [{ place: "figures", text: "{count} here, first {name}" }] });
  assert.equal(figureText(counted, "figures", { people: [{ name: "a" }, { name: "b" }] }), "2 here, first a");
});

test("the classes to choose from are the first model's that has any", () => {
  assert.deepEqual(modelWithClasses(STAGES, MODELS), { name: "yolo11n", classes: ["person"] });
  assert.deepEqual(modelWithClasses(STAGES, { ...MODELS, detect: null, pose: { name: "p", classes: ["dog"] } }), { name: "p", classes: ["dog"] });
  assert.equal(modelWithClasses(STAGES, { ocr: "x" }), null);
});

test("what two stages see is counted once", () => {
  const stages = [...STAGES, ...plugin("cut", "segments", [{ kind: "mask", at: "polygons", label: "{class_name}" }])];
  const [cat, dog] = [{ class_id: 1, class_name: "cat" }, { class_id: 2, class_name: "dog" }];
  const seen = { objects: [cat, cat], segments: [cat, dog], poses: [{}], texts: [], motion: null };
  assert.equal(inViewText(seen, stages), "2 × cat · 1 dog");
  assert.equal(inViewText({ ...seen, objects: [], segments: [] }, stages), "1 pose");
  assert.equal(DECLARED.length, 5);
});
