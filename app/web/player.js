// A film's own controls: pause, play, where it is. A camera has none.

import { element, say, within } from "./elements.js";
import { clock } from "./words.js";

const FINE_S = 0.1; // a step of the arrow keys …
const COARSE_S = 1; // … and in films longer than this many of them
const LONG_S = 30;

export class Player {
  #root = element("player", HTMLDivElement);
  #button = within(this.#root, "button", HTMLButtonElement);
  #position = within(this.#root, "input", HTMLInputElement);
  #time = within(this.#root, "output", HTMLOutputElement);
  /** @type {HTMLVideoElement | null} */
  #film = null;
  #ends = new AbortController();

  constructor() {
    this.#button.onclick = () => this.toggle();
    this.#position.oninput = () => {
      if (!this.#film) return;
      this.#film.currentTime = Number(this.#position.value);
      this.#say();
    };
  }

  /** @param {HTMLVideoElement | null} film Null: what is shown is none. */
  attach(film) {
    this.#ends.abort();
    this.#ends = new AbortController();
    this.#film = film;
    this.#root.hidden = !film;
    if (!film) return;
    const { signal } = this.#ends;
    for (const event of ["play", "pause"]) film.addEventListener(event, () => this.#sayButton(), { signal });
    for (const event of ["timeupdate", "seeked"]) film.addEventListener(event, () => this.#follow(), { signal });
    film.addEventListener("durationchange", () => this.#measure(), { signal });
    this.#measure();
    this.#sayButton();
  }

  /** Pauses the film or plays it on; does nothing where there is none. */
  toggle() {
    if (this.#film?.paused) void this.#film.play().catch(() => {}); // put away meanwhile
    else this.#film?.pause();
  }

  #measure() {
    const duration = this.#film?.duration ?? NaN;
    const known = Number.isFinite(duration) && duration > 0;
    this.#position.disabled = !known;
    this.#position.max = known ? String(duration) : "1";
    this.#position.step = duration > LONG_S ? String(COARSE_S) : String(FINE_S);
    this.#follow();
  }

  #follow() {
    if (this.#film && !this.#film.seeking && !this.#position.matches(":active")) this.#position.value = String(this.#film.currentTime);
    this.#say();
  }

  #say() {
    if (!this.#film) return;
    const { duration } = this.#film;
    const at = clock(this.#film.currentTime);
    const all = Number.isFinite(duration) ? clock(duration) : null;
    say(this.#time, all ? `${at} / ${all}` : at);
    this.#position.setAttribute("aria-valuetext", all ? `${at} of ${all}` : at);
  }

  #sayButton() {
    say(this.#button, this.#film?.paused ? "Play" : "Pause");
  }
}
