// What to look for and how to send it. The switches show the settings in force: what the service says, not what was asked.

import { ClassFilter } from "./classes.js";
import { element, make, say, within } from "./elements.js";
import { stageTitle, stageWords } from "./words.js";

/** @import { Wishes } from "./pace.js" */
/** @import { Ready, Result, Settings, SettingsInForce, StageName } from "./protocol.js" */

const STAGES = /** @type {const} */ (["detect", "pose", "ocr", "motion", "track", "summary"]);
const TITLES = { summary: "Summaries", field: "Motion vectors" };

export class Panel {
  /**
   * Called with what is to be changed.
   * @type {(patch: Settings) => void}
   */
  onsettings = () => {};
  /** @type {(wishes: Wishes) => void} */
  onpace = () => {};
  /** @type {Map<string, {box: HTMLInputElement, words: HTMLElement}>} */
  #switches = new Map();
  #classes = new ClassFilter(element("classes", HTMLElement));
  #confidence = element("confidence", HTMLInputElement);
  /** @type {string[]} */
  #classNames = [];
  /** Asked for, and the service said no. */
  #noSummaries = false;

  constructor() {
    const list = within(element("stages", HTMLElement), "ul", HTMLUListElement);
    for (const name of [...STAGES, "field"]) list.append(this.#row(name));
    this.#confidence.oninput = () => this.#sayConfidence();
    this.#confidence.onchange = () => this.onsettings({ confidence: Number(this.#confidence.value) });
    this.#classes.onchange = (classes) => this.onsettings({ classes });
    this.#classes.show([], null);
    for (const name of /** @type {const} */ (["size", "quality", "rate"])) {
      const choice = element(name, HTMLSelectElement);
      choice.onchange = () => this.onpace({ [name]: choice.value ? Number(choice.value) : null });
    }
  }

  /**
   * Everything chosen, for a session's `init`.
   * @returns {Settings}
   */
  get settings() {
    const on = (/** @type {string} */ name) => Boolean(this.#switches.get(name)?.box.checked);
    const stages = Object.fromEntries(STAGES.map((name) => [name, on(name)]));
    const classes = this.#classes.chosen;
    return { stages, confidence: Number(this.#confidence.value), motion_grid: on("field"), ...(classes.length && { classes }) };
  }

  /**
   * Turns a switch over, as if it had been pressed.
   * @param {string} name
   */
  toggle(name) {
    this.#switches.get(name)?.box.click();
  }

  /** @param {Ready} ready */
  begin({ models, settings }) {
    this.#classNames = models.detect?.classes ?? [];
    this.#noSummaries = false;
    element("yolo", HTMLElement).hidden = models.detect?.name !== "mediapipe";
    this.inForce(settings);
  }

  /** @param {SettingsInForce} settings */
  inForce(settings) {
    for (const name of STAGES) this.#check(name, settings.stages[name]);
    this.#check("field", settings.motion_grid);
    this.#noSummaries ||= this.#asked === "summary" && !settings.stages.summary;
    this.#asked = "";
    const summary = this.#switches.get("summary");
    if (summary) {
      summary.box.disabled = this.#noSummaries;
      say(summary.words, this.#noSummaries ? "not offered by this service" : "");
    }
    if (document.activeElement !== this.#confidence) this.#confidence.value = String(settings.confidence);
    this.#sayConfidence();
    this.#classes.show(this.#classNames, settings.classes);
  }

  /**
   * How each stage went.
   * @param {Result | null} result
   */
  observe(result) {
    for (const [name, { words, box }] of this.#switches) {
      if (name === "summary" || name === "field") continue;
      const stage = result?.stages[name];
      const off = !box.checked || !stage;
      say(words, off ? "" : stageWords(stage));
      words.dataset.status = off ? "" : stage.status;
    }
  }

  #asked = "";

  /** @param {string} name */
  #row(name) {
    const title = TITLES[/** @type {keyof typeof TITLES} */ (name)] ?? stageTitle(name);
    const box = make("input", { type: "checkbox", id: `stage-${name}`, checked: name !== "summary" && name !== "field" });
    box.setAttribute("role", "switch");
    const words = make("span", { className: "words" });
    box.onchange = () => {
      this.#asked = name;
      if (name === "field") this.onsettings({ motion_grid: box.checked, ...(box.checked && { stages: { motion: true } }) });
      else this.onsettings({ stages: { [/** @type {StageName} */ (name)]: box.checked } });
    };
    this.#switches.set(name, { box, words });
    return make("li", {}, make("label", { className: "switch" }, box, make("span", { textContent: title })), words);
  }

  /**
   * @param {string} name
   * @param {boolean} on
   */
  #check(name, on) {
    const one = this.#switches.get(name);
    if (one) one.box.checked = on;
  }

  #sayConfidence() {
    const output = within(element("stages", HTMLElement), "output", HTMLOutputElement);
    say(output, `${Math.round(Number(this.#confidence.value) * 100)}%`);
  }
}
