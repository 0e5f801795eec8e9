// The card over the picture: says what state things are in and what one can do about it.

import { make } from "./elements.js";
import { reachable } from "./scrolling.js";

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
  #title = make("h2", { tabIndex: -1 });
  #text = make("p");
  #key = "";
  /** @type {Node[]} */
  #body = [];
  /** @type {HTMLButtonElement[]} */
  #buttons = [];
  #after;

  /**
   * @param {HTMLElement} root
   * @param {HTMLElement} after Where the focus goes when a card goes that had it.
   */
  constructor(root, after) {
    this.#root = root;
    reachable(root);
    this.#after = after;
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
    if (key === this.#key && same && this.shown) {
      // Only its text moved on, or what a press does: the focus stays.
      actions.forEach(({ run }, index) => (this.#buttons[index].onclick = run));
      return;
    }
    this.#key = key;
    this.#body = body;
    this.#root.role = tone === "problem" ? "alert" : null;
    const held = this.#root.contains(document.activeElement);
    this.#buttons = actions.map(({ label, run, primary }) => {
      const button = make("button", { className: primary ? "primary" : "", textContent: label });
      button.onclick = run;
      return button;
    });
    const buttons = this.#buttons;
    const row = make("div", { className: "actions" }, ...buttons);
    const inner = make("div", { className: "inner" }, this.#title, this.#text, ...body);
    if (buttons.length) inner.append(row);
    this.#root.replaceChildren(inner);
    this.#root.hidden = false;
    // Who works by keyboard goes on from here: from a card that was replaced, or a button that is off by now.
    const main = buttons.find((_, index) => actions[index].primary);
    if (held) (main ?? buttons[0] ?? this.#title).focus();
    else if (main && tone !== "start" && nowhere()) main.focus({ preventScroll: true });
  }

  /** @param {string} text */
  say(text) {
    if (this.#text.textContent !== text) this.#text.textContent = text;
  }

  hide() {
    if (this.#root.contains(document.activeElement)) this.#after.focus();
    this.#root.hidden = true;
    this.#key = "";
  }
}

function nowhere() {
  const at = document.activeElement;
  return !at || at === document.body || at.matches(":disabled");
}
