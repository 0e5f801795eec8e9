// The settings: the controls for them, and those in the page's address.

import { element, make, setText, within } from "./elements.js";
import { load, store } from "./storage.js";
import { figureText, modelWithClasses } from "./stages.js";
import { classLabel, stageText } from "./text.js";

/** @import { Ready, Result, Settings, SettingsInForce } from "./protocol.js" */
/** @import { SendOptions } from "./sender.js" */
/** @import { ShownStage } from "./stages.js" */

const SLIDER_MS = 120; // a setting changes once its slider has rested this long
const FLOW_KEY = "sightline.vectors";

/** @typedef {{box: HTMLInputElement, state: HTMLElement, title: string}} Switch */

/** The controls of the stages, the classes, the confidence and the sending. They show the settings in force, not those asked for. */
export class SettingsPanel {
  /**
   * Called with the settings to change.
   * @type {(patch: Settings) => void}
   */
  onsettings = () => {};
  /**
   * Called with the options of sending to change.
   * @type {(options: SendOptions) => void}
   */
  onsend = () => {};
  /** @type {Map<string, Switch>} */
  #switches = new Map();
  /** @type {ShownStage[] | null} */
  #stages = null;
  #classes = new ClassFilter(element("classes", HTMLElement));
  #confidence = element("confidence", HTMLInputElement);
  /** @type {string[]} */
  #classNames = [];
  /**
   * What the user has changed, and whether the page draws motion vectors. The operator's defaults apply to the rest.
   * @type {Settings}
   */
  #chosen;
  #noSummaries = false;
  #prompt = within(element("prompt", HTMLElement), "select", HTMLSelectElement);

  /** @param {Settings} asked The settings in the page's address. */
  constructor(asked) {
    this.#chosen = { motion_grid: load("browser", FLOW_KEY) === "on", ...asked };
    if (asked.confidence !== undefined) this.#confidence.value = String(asked.confidence);
    this.#showConfidence();
    let moving = 0;
    this.#confidence.oninput = () => {
      this.#showConfidence();
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
   * The chosen settings, for a session's `init`.
   * @returns {Settings}
   */
  get settings() {
    return this.#chosen;
  }

  /** The switches of what is drawn, in order: their names, and what they switch as words. */
  get switches() {
    return [...this.#switches].filter(([name]) => name !== "summary").map(([name, { title }]) => ({ name, title: title.toLowerCase() }));
  }

  /**
   * Toggles a switch, as a press does.
   * @param {string} name
   */
  toggle(name) {
    this.#switches.get(name)?.box.click();
  }

  /**
   * Shows a switch for each stage, and those of the page itself.
   * @param {ShownStage[]} stages
   */
  show(stages) {
    const before = this.#stages;
    this.#stages = stages;
    if (before && JSON.stringify(before.map(about)) === JSON.stringify(stages.map(about))) return;
    this.#switches.clear();
    const rows = stages.map(({ name, title, description }) => this.#row(name, title, description));
    rows.push(this.#row("summary", "Summaries", ""));
    if (this.#withVectors().length) rows.push(this.#row("flow", "Motion vectors", ""));
    within(element("stages", HTMLElement), "ul", HTMLUListElement).replaceChildren(...rows);
  }

  /**
   * Begins a session: shows what its models offer.
   * @param {Ready} ready
   * @param {ShownStage[]} stages
   */
  begin({ models, prompts = [] }, stages) {
    this.show(stages);
    const model = modelWithClasses(stages, models);
    this.#classNames = model?.classes ?? [];
    this.#noSummaries = !prompts.length;
    this.#prompt.replaceChildren(...prompts.map((name) => make("option", { textContent: name })));
    element("yolo", HTMLElement).hidden = model?.name !== "mediapipe";
  }

  /**
   * Shows the settings in force.
   * @param {SettingsInForce} settings
   */
  inForce(settings) {
    for (const [name, on] of Object.entries(settings.stages)) this.#check(name, on);
    this.#check("flow", settings.motion_grid);
    element("prompt", HTMLElement).hidden = !settings.stages.summary || this.#prompt.options.length < 2;
    this.#prompt.value = settings.summary_prompt ?? "";
    const summary = this.#switches.get("summary");
    if (summary) {
      summary.box.disabled = this.#noSummaries;
      setText(summary.state, this.#noSummaries ? "not offered by this service" : "");
    }
    if (document.activeElement !== this.#confidence) this.#confidence.value = String(settings.confidence);
    this.#showConfidence();
    this.#classes.show(this.#classNames, settings.classes);
  }

  /**
   * Shows the status of each stage.
   * @param {Result | null} result Null: no session is live.
   */
  observe(result) {
    for (const shown of this.#stages ?? []) {
      const { state, box } = /** @type {Switch} */ (this.#switches.get(shown.name));
      const stage = result?.stages[shown.name];
      const off = !box.checked || !stage;
      setText(state, off ? "" : [stageText(stage), figureText(shown, "status", result)].filter(Boolean).join(", "));
      state.dataset.status = off ? "" : stage.status;
    }
  }

  /** @param {Settings} patch */
  #change(patch) {
    this.#chosen = { ...this.#chosen, ...patch, stages: { ...this.#chosen.stages, ...patch.stages } };
    this.onsettings(patch);
  }

  /** The stages that show vectors. */
  #withVectors() {
    return (this.#stages ?? []).filter(({ shapes }) => shapes.some(({ kind }) => kind === "field")).map(({ name }) => name);
  }

  /**
   * @param {string} name
   * @param {string} title
   * @param {string} description
   */
  #row(name, title, description) {
    const checked = name === "flow" ? this.#chosen.motion_grid : (this.#chosen.stages?.[name] ?? name !== "summary");
    const box = make("input", { type: "checkbox", id: `stage-${name}`, checked });
    box.setAttribute("role", "switch");
    const state = make("span", { className: "state" });
    box.onchange = () => {
      if (name !== "flow") return this.#change({ stages: { [name]: box.checked } });
      store("browser", FLOW_KEY, box.checked ? "on" : "off");
      const needed = Object.fromEntries(this.#withVectors().map((stage) => [stage, true]));
      this.#change({ motion_grid: box.checked, ...(box.checked && { stages: needed }) });
    };
    this.#switches.set(name, { box, state, title });
    const label = make("label", { className: "switch", title: description }, box, make("span", { textContent: title }));
    return make("li", {}, label, state);
  }

  /**
   * @param {string} name
   * @param {boolean} on
   */
  #check(name, on) {
    const found = this.#switches.get(name);
    if (found) found.box.checked = on;
  }

  #showConfidence() {
    const output = within(element("stages", HTMLElement), "output", HTMLOutputElement);
    setText(output, `${Math.round(Number(this.#confidence.value) * 100)}%`);
  }
}

/** @param {ShownStage} stage What of it a switch shows. */
function about({ name, title, description, shapes }) {
  return [name, title, description, shapes.map(({ kind }) => kind)];
}

// --- classes ---

/** The choice of the classes to keep: a chip for each, and a search. Choosing none keeps all. */
class ClassFilter {
  /**
   * Called with the chosen classes: each by its name, or by its number where it has no name or shares it with another.
   * @type {(classes: (string | number)[]) => void}
   */
  onchange = () => {};
  /** @type {string[]} */
  #names = [];
  /**
   * In the order of the model's classes.
   * @type {HTMLButtonElement[]}
   */
  #chips = [];
  /** @type {Set<number>} */
  #chosen = new Set();
  #root;
  #box;
  #search;

  /** @param {HTMLElement} root */
  constructor(root) {
    this.#root = root;
    this.#box = within(root, ".chips", HTMLElement);
    this.#search = within(root, "input", HTMLInputElement);
    this.#search.oninput = () => this.#filter();
  }

  /**
   * @param {string[]} names The model's classes.
   * @param {number[] | null} kept Ids of the classes in force; null means all.
   */
  show(names, kept) {
    if (JSON.stringify(this.#names) !== JSON.stringify(names)) {
      this.#names = names;
      this.#chips = names.map((name, id) => this.#chip(classLabel(name, id), id));
      this.#box.replaceChildren(this.#all(), ...this.#chips);
      this.#search.hidden = names.length < 12;
      this.#search.value = "";
    }
    this.#root.hidden = names.length < 2;
    this.#chosen = new Set(kept ?? []);
    this.#mark();
  }

  /**
   * @param {string} label
   * @param {number} id
   */
  #chip(label, id) {
    const chip = make("button", { type: "button", className: "chip", title: label });
    chip.append(make("span", { textContent: label }));
    chip.onclick = () => {
      if (!this.#chosen.delete(id)) this.#chosen.add(id);
      this.#mark();
      this.onchange([...this.#chosen].sort((a, b) => a - b).map((chosen) => this.#nameOrId(chosen)));
    };
    return chip;
  }

  /**
   * How `classes` names a class: by its name where that is unique.
   * @param {number} id
   */
  #nameOrId(id) {
    const name = this.#names[id];
    const unique = classLabel(name, id) === name && this.#names.indexOf(name) === this.#names.lastIndexOf(name);
    return unique ? name : id;
  }

  #all() {
    const chip = make("button", { type: "button", className: "chip", textContent: "all" });
    chip.dataset.all = "";
    chip.onclick = () => {
      this.#chosen.clear();
      this.#mark();
      this.onchange([]);
    };
    return chip;
  }

  #mark() {
    this.#chips.forEach((chip, id) => (chip.ariaPressed = String(this.#chosen.has(id))));
    const all = this.#box.querySelector("[data-all]");
    if (all) all.ariaPressed = String(!this.#chosen.size);
    const names = this.#chips.filter((_, id) => this.#chosen.has(id)).map((chip) => chip.textContent ?? "");
    const more = names.length > 3 ? `, ${names.length - 3} more` : "";
    setText(within(this.#root, "summary span", HTMLElement), names.slice(0, 3).join(", ") + more || "all");
  }

  #filter() {
    const wanted = this.#search.value.trim().toLowerCase();
    for (const chip of this.#chips) chip.hidden = !chip.textContent?.toLowerCase().includes(wanted);
  }
}

// --- the page's address ---

/** @type {Record<string, {expects: string, read: (text: string) => Settings | null}>} */
const PARAMETERS = {
  confidence: { expects: "a number from 0 to 1, as in confidence=0.5", read: (text) => readShare("confidence", text) },
  iou: { expects: "a number from 0 to 1, as in iou=0.7", read: (text) => readShare("iou", text) },
  classes: { expects: "names or numbers of classes, as in classes=person,dog", read: readClasses },
};
const MOST_SHOWN = 40;
const NEAR = 3; // edits (Levenshtein) up to which a name counts as a misspelling

/**
 * Reads the settings in the page's address, for example `?confidence=0.5&classes=person,dog`.
 * @param {string} search `location.search`.
 * @returns {{settings: Settings, problems: string[]}} The valid parameters as settings, and a sentence about each of the others.
 */
export function readQuery(search) {
  /** @type {Settings} */
  let settings = {};
  /** @type {string[]} */
  const problems = [];
  for (const [name, text] of new URLSearchParams(search)) {
    const known = Object.hasOwn(PARAMETERS, name) ? PARAMETERS[name] : null;
    const read = known?.read(text.trim());
    if (read) settings = { ...settings, ...read };
    else if (known) problems.push(`“${name}” expects ${known.expects}, not “${shortened(text)}”.`);
    else problems.push(unknownText(name));
  }
  return { settings, problems };
}

/**
 * A sentence about a parameter that the page does not know.
 * @param {string} name
 */
function unknownText(name) {
  const names = Object.keys(PARAMETERS);
  const near = names.find((other) => alike(name.toLowerCase(), other));
  const instead = near ? `Did you mean “${near}”?` : `The page knows ${names.slice(0, -1).join(", ")} and ${names.at(-1)}.`;
  return `The page’s address has “${shortened(name)}”, which the page does not know. ${instead}`;
}

/**
 * Whether a name is probably a misspelling or an abbreviation of another.
 * @param {string} written
 * @param {string} right
 */
function alike(written, right) {
  if (written.length > 1 && (right.startsWith(written) || written.startsWith(right))) return true;
  return written.length > 2 && distance(written, right) <= Math.min(NEAR, right.length / 2);
}

/**
 * The Levenshtein distance.
 * @param {string} a
 * @param {string} b
 */
function distance(a, b) {
  let before = Array.from({ length: b.length + 1 }, (_, at) => at);
  for (let i = 1; i <= Math.min(a.length, MOST_SHOWN); i += 1) {
    const row = [i];
    for (let j = 1; j <= b.length; j += 1) {
      row.push(Math.min(row[j - 1] + 1, before[j] + 1, before[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1)));
    }
    before = row;
  }
  return before[b.length];
}

/**
 * Reads a number from 0 to 1.
 * @param {"confidence" | "iou"} name
 * @param {string} text
 * @returns {Settings | null}
 */
function readShare(name, text) {
  const value = Number(text);
  return text && value >= 0 && value <= 1 ? { [name]: value } : null;
}

/**
 * Reads a list of classes.
 * @param {string} text
 * @returns {Settings | null}
 */
function readClasses(text) {
  const names = text.split(",").map((name) => name.trim());
  if (!names.every(Boolean)) return null;
  return { classes: names.map((name) => (/^\d{1,9}$/.test(name) ? Number(name) : name)) };
}

/** @param {string} text */
function shortened(text) {
  return text.length > MOST_SHOWN ? `${text.slice(0, MOST_SHOWN)}…` : text;
}
