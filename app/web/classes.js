// Which classes to keep: a chip for each, found by typing.

import { make, say, within } from "./elements.js";
import { classWords } from "./words.js";

/** Nothing chosen keeps all. */
export class ClassFilter {
  /**
   * Called with the classes chosen, each by its name; by its number where it has none, or another has the same.
   * @type {(classes: (string | number)[]) => void}
   */
  onchange = () => {};
  /** @type {string[]} */
  #names = [];
  /**
   * In the order of the model, as the names.
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
    this.#search.oninput = () => this.#find();
  }

  /**
   * The classes that the model knows, and the ids that are kept.
   * @param {string[]} names
   * @param {number[] | null} kept
   */
  show(names, kept) {
    if (JSON.stringify(this.#names) !== JSON.stringify(names)) {
      this.#names = names;
      this.#chips = names.map((name, id) => this.#chip(classWords(name, id), id));
      this.#box.replaceChildren(this.#all(), ...this.#chips);
      this.#search.hidden = names.length < 12;
      this.#search.value = "";
    }
    this.#root.hidden = names.length < 2;
    this.#chosen = new Set(kept ?? []);
    this.#mark();
  }

  /**
   * @param {string} words
   * @param {number} id
   */
  #chip(words, id) {
    const chip = make("button", { type: "button", className: "chip", title: words });
    chip.append(make("span", { textContent: words }));
    chip.onclick = () => {
      if (!this.#chosen.delete(id)) this.#chosen.add(id);
      this.#mark();
      this.onchange([...this.#chosen].sort((a, b) => a - b).map((one) => this.#wish(one)));
    };
    return chip;
  }

  /** @param {number} id */
  #wish(id) {
    const name = this.#names[id];
    const own = classWords(name, id) === name && this.#names.indexOf(name) === this.#names.lastIndexOf(name);
    return own ? name : id;
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
    say(within(this.#root, "summary span", HTMLElement), names.slice(0, 3).join(", ") + more || "all");
  }

  #find() {
    const wanted = this.#search.value.trim().toLowerCase();
    for (const chip of this.#chips) chip.hidden = !chip.textContent?.toLowerCase().includes(wanted);
  }
}
