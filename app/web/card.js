// The card over the picture: says what state things are in and what one can do about it.

import { make } from "./elements.js";

/**
 * @typedef {object} Action
 * @property {string} label
 * @property {() => void} run
 * @property {boolean} [primary]
 */
/**
 * @typedef {object} Content
 * @property {string} title
 * @property {string} text
 * @property {"start" | "calm" | "wait" | "problem"} [tone]
 * @property {Action[]} [actions]
 * @property {Node[]} [body] Between text and actions.
 */

export class Card {
  #root;
  #title = make("h2");
  #text = make("p");
  #key = "";
  /** @type {Node[]} */
  #body = [];

  /** @param {HTMLElement} root */
  constructor(root) {
    this.#root = root;
  }

  get shown() {
    return !this.#root.hidden;
  }

  /** @param {Content} content */
  show({ title, text, tone = "calm", actions = [], body = [] }) {
    const key = JSON.stringify([title, tone, actions.map(({ label }) => label)]);
    this.#title.textContent = title;
    this.#text.textContent = text;
    this.#root.dataset.tone = tone;
    const same = body.length === this.#body.length && body.every((node, index) => node === this.#body[index]);
    if (key === this.#key && same && this.shown) return; // only its text moved on: the focus stays
    this.#key = key;
    this.#body = body;
    this.#root.role = tone === "problem" ? "alert" : null;
    const buttons = actions.map(({ label, run, primary }) => {
      const button = make("button", { className: primary ? "primary" : "", textContent: label });
      button.onclick = run;
      return button;
    });
    const row = make("div", { className: "actions" }, ...buttons);
    const inner = make("div", { className: "inner" }, this.#title, this.#text, ...body);
    if (buttons.length) inner.append(row);
    this.#root.replaceChildren(inner);
    this.#root.hidden = false;
  }

  /** @param {string} text */
  say(text) {
    if (this.#text.textContent !== text) this.#text.textContent = text;
  }

  hide() {
    this.#root.hidden = true;
    this.#key = "";
  }
}
