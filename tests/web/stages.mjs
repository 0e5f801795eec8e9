// The stages as the service declares them (`tests/live/test_page.py` compares them), interpreted for the page.

import { readFileSync } from "node:fs";

import { interpreted } from "../../app/web/stages.js";
import { SourceChange, Tracks } from "../../app/web/tracks.js";

export const DECLARED = JSON.parse(readFileSync(new URL("ready-stages.json", import.meta.url), "utf8"));
export const MODELS = {
  detect: { name: "yolo11n", classes: ["person"] },
  pose: { name: "yolo11n-pose", keypoints: ["nose"], skeleton: [[0, 1]] },
  ocr: "PP-OCRv5",
};
export const STAGES = interpreted(DECLARED, MODELS);

/** A stage of a plug-in: its shapes as `ready.stages` would have them. */
export function plugin(name, field, shapes, more = {}) {
  return interpreted([{ name, title: name, description: "", field, late: false, figures: [], shapes, ...more }], {});
}

export function tracksOf(stages = STAGES) {
  return Object.assign(new Tracks(), { stages });
}

export function changeOf(stages = STAGES) {
  return Object.assign(new SourceChange(), { stages });
}
