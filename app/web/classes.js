// Which classes to keep: a chip for each, found by typing.

import { make, say, within } from "./elements.js";

/** Nothing chosen keeps all. */
export class ClassFilter {
  /**
   * Called with the names chosen.
   * @type {(names: string[]) => void}
   */
  onchange = () => {};
  /** @type {Map<string, HTMLButtonElement>} */
  #chips = new Map();
  /** @type {Set<string>} */
  #chosen = new Set();
  #root;
  #box;

  /** @param {HTMLElement} root */
  constructor(root) {
    this.#root = root;
    this.#box = within(root, ".chips", HTMLElement);
    const search = within(root, "input", HTMLInputElement);
    search.oninput = () => this.#find(search.value);
  }

  /** The names chosen, in the order of the model. */
  get chosen() {
    return [...this.#chips.keys()].filter((name) => this.#chosen.has(name));
  }

  /**
   * The classes that the model knows, and the ids that are kept.
   * @param {string[]} names
   * @param {number[] | null} kept
   */
  show(names, kept) {
    if ([...this.#chips.keys()].join("\n") !== names.join("\n")) {
      this.#chips = new Map(names.map((name) => [name, this.#chip(name)]));
      this.#box.replaceChildren(this.#all(), ...this.#chips.values());
      within(this.#root, "input", HTMLElement).hidden = names.length < 12;
    }
    this.#root.hidden = names.length < 2;
    this.#chosen = new Set((kept ?? []).map((id) => names[id]));
    this.#mark();
  }

  /** @param {string} name */
  #chip(name) {
    const chip = make("button", { type: "button", className: "chip", textContent: name });
    chip.onclick = () => {
      if (!this.#chosen.delete(name)) this.#chosen.add(name);
      this.#mark();
      this.onchange(this.chosen);
    };
    return chip;
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
    for (const [name, chip] of this.#chips) chip.ariaPressed = String(this.#chosen.has(name));
    const all = this.#box.querySelector("[data-all]");
    if (all) all.ariaPressed = String(!this.#chosen.size);
    const names = this.chosen;
    const more = names.length > 3 ? `, ${names.length - 3} more` : "";
    say(within(this.#root, "summary span", HTMLElement), names.slice(0, 3).join(", ") + more || "all");
  }

  /** @param {string} text */
  #find(text) {
    const wanted = text.trim().toLowerCase();
    for (const [name, chip] of this.#chips) chip.hidden = !name.toLowerCase().includes(wanted);
  }
}
