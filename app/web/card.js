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
 * @property {"calm" | "wait" | "problem"} [tone]
 * @property {Action[]} [actions]
 * @property {Node[]} [body] Between text and actions.
 */

export class Card {
  #root;
  #title = make("h2");
  #text = make("p");
  #key = "";

  /** @param {HTMLElement} root */
  constructor(root) {
    this.#root = root;
  }

  get shown() {
    return !this.#root.hidden;
  }

  /** @param {Content} content */
  show({ title, text, tone = "calm", actions = [], body = [] }) {
    const key = JSON.stringify([title, tone, actions.map(({ label }) => label), body.length]);
    this.#title.textContent = title;
    this.#text.textContent = text;
    this.#root.dataset.tone = tone;
    if (key === this.#key && this.shown && !body.length) return; // only its text moved on: the focus stays
    this.#key = key;
    const buttons = actions.map(({ label, run, primary }) => {
      const button = make("button", { className: primary ? "primary" : "", textContent: label });
      button.onclick = run;
      return button;
    });
    const row = make("div", { className: "actions" }, ...buttons);
    this.#root.replaceChildren(make("div", { className: "inner" }, this.#title, this.#text, ...body, ...(buttons.length ? [row] : [])));
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
