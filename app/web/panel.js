// What to look for and how to send it. The switches show the settings in force: what the service says, not what was
// asked.

import { ClassFilter } from "./classes.js";
import { element, make, say, within } from "./elements.js";
import { recall, remember } from "./memory.js";
import { stageTitle, stageWords } from "./words.js";

/** @import { SendOptions } from "./sender.js" */
/** @import { Ready, Result, Settings, SettingsInForce, StageName } from "./protocol.js" */

const STAGES = /** @type {const} */ (["detect", "pose", "ocr", "motion", "track", "summary"]);
const SLIDER_MS = 120; // a slider on its way changes nothing yet
const VECTORS_KEPT = "sightline.vectors";
const TITLES = { summary: "Summaries", field: "Motion vectors" };

export class Panel {
  /**
   * Called with what is to be changed.
   * @type {(patch: Settings) => void}
   */
  onsettings = () => {};
  /** @type {(options: SendOptions) => void} */
  onsend = () => {};
  /** @type {Map<string, {box: HTMLInputElement, words: HTMLElement}>} */
  #switches = new Map();
  #classes = new ClassFilter(element("classes", HTMLElement));
  #confidence = element("confidence", HTMLInputElement);
  /** @type {string[]} */
  #classNames = [];
  /**
   * What was changed by hand, and the vectors, which the page draws for who asks for them; the rest is as the operator
   * set it.
   * @type {Settings}
   */
  #chosen;
  #noSummaries = false;
  #prompt = within(element("prompt", HTMLElement), "select", HTMLSelectElement);

  /** @param {Settings} asked For by the page's address. */
  constructor(asked) {
    this.#chosen = { motion_grid: recall("browser", VECTORS_KEPT) === "on", ...asked };
    if (asked.confidence !== undefined) this.#confidence.value = String(asked.confidence);
    this.#sayConfidence();
    const list = within(element("stages", HTMLElement), "ul", HTMLUListElement);
    for (const name of [...STAGES, "field"]) list.append(this.#row(name));
    let moving = 0;
    this.#confidence.oninput = () => {
      this.#sayConfidence();
      clearTimeout(moving);
      moving = setTimeout(() => this.#change({ confidence: Number(this.#confidence.value) }), SLIDER_MS);
    };
    this.#prompt.onchange = () => this.#change({ summary: { prompt: this.#prompt.value } });
    this.#classes.onchange = (classes) => this.#change({ classes });
    this.#classes.show([], null);
    for (const name of /** @type {const} */ (["size", "quality", "rate"])) {
      const choice = element(name, HTMLSelectElement);
      choice.onchange = () => this.onsend({ [name]: choice.value ? Number(choice.value) : null });
    }
  }

  /**
   * What was chosen, for a session's `init`.
   * @returns {Settings}
   */
  get settings() {
    return this.#chosen;
  }

  /**
   * Turns a switch over, as if it had been pressed.
   * @param {string} name
   */
  toggle(name) {
    this.#switches.get(name)?.box.click();
  }

  /** @param {Ready} ready */
  begin({ models, prompts = [] }) {
    this.#classNames = models.detect?.classes ?? [];
    this.#noSummaries = !prompts.length;
    this.#prompt.replaceChildren(...prompts.map((name) => make("option", { textContent: name })));
    element("yolo", HTMLElement).hidden = models.detect?.name !== "mediapipe";
  }

  /** @param {SettingsInForce} settings */
  inForce(settings) {
    for (const name of STAGES) this.#check(name, settings.stages[name]);
    this.#check("field", settings.motion_grid);
    element("prompt", HTMLElement).hidden = !settings.stages.summary || this.#prompt.options.length < 2;
    this.#prompt.value = settings.summary_prompt ?? "";
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
      const score = name === "motion" && result?.motion ? `, score ${result.motion.score.toFixed(3)}` : "";
      say(words, off ? "" : stageWords(stage) + score);
      words.dataset.status = off ? "" : stage.status;
    }
  }

  /** @param {Settings} patch */
  #change(patch) {
    this.#chosen = { ...this.#chosen, ...patch, stages: { ...this.#chosen.stages, ...patch.stages } };
    this.onsettings(patch);
  }

  /** @param {string} name */
  #row(name) {
    const title = TITLES[/** @type {keyof typeof TITLES} */ (name)] ?? stageTitle(name);
    const checked = name === "field" ? this.#chosen.motion_grid : name !== "summary";
    const box = make("input", { type: "checkbox", id: `stage-${name}`, checked });
    box.setAttribute("role", "switch");
    const words = make("span", { className: "words" });
    box.onchange = () => {
      if (name !== "field") return this.#change({ stages: { [/** @type {StageName} */ (name)]: box.checked } });
      remember("browser", VECTORS_KEPT, box.checked ? "on" : "off");
      this.#change({ motion_grid: box.checked, ...(box.checked && { stages: { motion: true } }) });
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
