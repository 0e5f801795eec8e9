// Draws a scene. Every line has a dark edge and every label a dark ground, so that it shows on any picture.

import { paintField } from "./field.js";
import { label } from "./labels.js";
import { EDGE, stroke } from "./strokes.js";
import { classWords } from "./words.js";

/** @import { Rectangle } from "./labels.js" */
/** @import { Scene, SceneObject, ScenePose, SceneText } from "./tracks.js" */
/** @typedef {CanvasRenderingContext2D | OffscreenCanvasRenderingContext2D} Pen */
/**
 * @typedef {object} Place Where the scene lies on the canvas, and how large things are drawn on it.
 * @property {number} x
 * @property {number} y
 * @property {number} scale Canvas pixels a scene pixel.
 * @property {number} unit Canvas pixels a CSS pixel: line widths and letters follow it.
 */

const LEAST_KEYPOINT = 0.3;
const LEFT = "#4dd8ff";
const RIGHT = "#ffa14d";
const MIDDLE = "#ffffff";
const TEXT = "#ffe14d";
const FONT_PX = 13;

/**
 * A colour of its own for each class: hues a golden angle apart, all light enough for a dark ground.
 * @param {number} classId
 */
export function classColour(classId) {
  return `hsl(${Math.round((145 + classId * 137.508) % 360)} 90% 65%)`;
}

/**
 * @param {Pen} pen
 * @param {Scene} scene
 * @param {Place} place
 * @param {[number, number][]} skeleton
 */
export function paint(pen, scene, place, skeleton) {
  /** @type {Rectangle[]} */
  const labels = [];
  const bounds = { x: place.x, y: place.y, width: scene.width * place.scale, height: scene.height * place.scale };
  pen.save();
  pen.lineJoin = pen.lineCap = "round";
  pen.font = `600 ${FONT_PX * place.unit}px system-ui, sans-serif`;
  pen.textBaseline = "middle";
  if (scene.field) paintField(pen, scene, scene.field, place);
  for (const pose of scene.poses) paintPose(pen, scene, pose, place, skeleton);
  for (const object of scene.objects) paintBox(pen, object, place);
  if (scene.texts.length) {
    pen.save();
    pen.beginPath();
    pen.rect(bounds.x, bounds.y, bounds.width, bounds.height);
    pen.clip();
    for (const text of scene.texts) paintText(pen, text, place);
    pen.restore();
  }
  // Labels last: nothing is drawn over them, and each keeps clear of those before it. Small things have theirs last,
  // since there is room around them.
  const largestFirst = [...scene.objects].sort((a, b) => area(b.box) - area(a.box));
  for (const { box, class_id, class_name, confidence, track_id, alpha } of largestFirst) {
    const figures = `${Math.round(confidence * 100)}%${track_id === null ? "" : ` #${track_id}`}`;
    label(pen, classWords(class_name, class_id), figures, onCanvas(box, place), classColour(class_id), alpha, place, bounds, labels);
  }
  for (const { text, polygon, alpha } of scene.texts) {
    label(pen, text, "", onCanvas(around(polygon), place), TEXT, alpha, place, bounds, labels);
  }
  pen.restore();
}

/**
 * @param {Pen} pen
 * @param {SceneObject} object
 * @param {Place} place
 */
function paintBox(pen, { box, class_id, alpha }, place) {
  const { x, y, width, height } = onCanvas(box, place);
  pen.globalAlpha = alpha;
  pen.beginPath();
  pen.roundRect(x, y, width, height, 3 * place.unit);
  stroke(pen, 2, classColour(class_id), place.unit);
}

/**
 * A point on the very edge was clipped to the picture: nobody knows where it really is.
 * @param {Pen} pen
 * @param {Scene} scene
 * @param {ScenePose} pose
 * @param {Place} place
 * @param {[number, number][]} skeleton
 */
function paintPose(pen, { width, height }, { keypoints, alpha }, { x, y, scale, unit }, skeleton) {
  pen.globalAlpha = alpha;
  const sure = keypoints.map((point) => {
    const inside = point.x > 1 && point.y > 1 && point.x < width - 1 && point.y < height - 1;
    return inside && point.confidence >= LEAST_KEYPOINT;
  });
  for (const colour of [MIDDLE, LEFT, RIGHT]) {
    pen.beginPath();
    for (const [a, b] of skeleton) {
      if (!sure[a] || !sure[b] || limbColour(keypoints[a].name, keypoints[b].name) !== colour) continue;
      pen.moveTo(x + keypoints[a].x * scale, y + keypoints[a].y * scale);
      pen.lineTo(x + keypoints[b].x * scale, y + keypoints[b].y * scale);
    }
    stroke(pen, 2.5, colour, unit);
  }
  pen.beginPath();
  keypoints.forEach((point, i) => {
    if (!sure[i]) return;
    const [across, down] = [x + point.x * scale, y + point.y * scale];
    pen.moveTo(across + 3 * unit, down);
    pen.arc(across, down, 3 * unit, 0, 2 * Math.PI);
  });
  pen.fillStyle = "#fff";
  pen.strokeStyle = EDGE;
  pen.lineWidth = 1.5 * unit;
  pen.stroke();
  pen.fill();
}

/**
 * @param {string} a
 * @param {string} b
 */
function limbColour(a, b) {
  if (a.startsWith("left") && b.startsWith("left")) return LEFT;
  return a.startsWith("right") && b.startsWith("right") ? RIGHT : MIDDLE;
}

/**
 * A text that was read a while ago has a broken line: the sign may have moved since.
 * @param {Pen} pen
 * @param {SceneText} text
 * @param {Place} place
 */
function paintText(pen, { polygon, stale, alpha }, { x, y, scale, unit }) {
  pen.globalAlpha = alpha;
  pen.beginPath();
  for (const [across, down] of polygon) pen.lineTo(x + across * scale, y + down * scale);
  pen.closePath();
  if (stale) pen.setLineDash([6 * unit, 5 * unit]);
  stroke(pen, 2, TEXT, unit);
  pen.setLineDash([]);
}

/**
 * @param {{x1: number, y1: number, x2: number, y2: number}} box
 * @param {Place} place
 * @returns {Rectangle}
 */
function onCanvas({ x1, y1, x2, y2 }, { x, y, scale }) {
  return { x: x + x1 * scale, y: y + y1 * scale, width: (x2 - x1) * scale, height: (y2 - y1) * scale };
}

/** @param {{x1: number, y1: number, x2: number, y2: number}} box */
function area({ x1, y1, x2, y2 }) {
  return (x2 - x1) * (y2 - y1);
}

/** @param {[number, number][]} polygon */
function around(polygon) {
  const xs = polygon.map(([x]) => x);
  const ys = polygon.map(([, y]) => y);
  return { x1: Math.min(...xs), y1: Math.min(...ys), x2: Math.max(...xs), y2: Math.max(...ys) };
}
