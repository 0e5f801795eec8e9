// One source at a time: opens the one that is asked for, puts its view on the page, says what is wrong.

import { element, make, within } from "./elements.js";
import { problemOf } from "./problems.js";
import { openSample } from "./sample.js";
import { listCameras, openCamera, openFile, openScreen } from "./source.js";

/** @import { Source } from "./source.js" */
/** @import { States } from "./states.js" */

const ASKED_MS = 600; // a camera that was allowed before opens within that

export class Switcher {
  /** @type {Source | null} */
  source = null;
  /**
   * Called when another source is shown, or none.
   * @type {(source: Source | null) => void}
   */
  onchange = () => {};
  #states;
  #opening = 0;
  /** @type {"user" | "environment"} */
  #facing = "user";
  #cameras = within(element("cameras", HTMLLabelElement), "select", HTMLSelectElement);
  #flip = element("flip", HTMLButtonElement);
  /** Opens the last source anew. */
  #last = () => this.camera();

  /** @param {States} states */
  constructor(states) {
    this.#states = states;
    element("camera", HTMLButtonElement).onclick = () => void this.camera();
    element("sample", HTMLButtonElement).onclick = () => void this.sample();
    element("screen", HTMLButtonElement).onclick = () => void this.#open("screen", openScreen);
    this.#cameras.onchange = () => void this.camera({ deviceId: this.#cameras.value });
    this.#flip.onclick = () => {
      this.#facing = this.#facing === "user" ? "environment" : "user";
      void this.camera({ facing: this.#facing });
    };
    this.#takeFiles();
  }

  /** @param {{deviceId?: string, facing?: "user" | "environment"}} [choice] */
  async camera(choice = {}) {
    if (this.source?.kind === "camera") this.stop(); // a phone opens one camera at a time
    await this.#open("camera", () => openCamera(choice));
    if (this.source?.kind === "camera") await this.#offerCameras();
  }

  sample() {
    return this.#open("sample", () => openSample(new URL("scene.jpg", import.meta.url).href));
  }

  again() {
    return this.#last();
  }

  stop() {
    this.#opening += 1;
    this.source?.stop();
    this.source = null;
    element("view", HTMLElement).replaceChildren();
    element("cameras", HTMLElement).hidden = this.#flip.hidden = true;
    this.onchange(null);
  }

  /**
   * @param {Source["kind"]} kind
   * @param {() => Promise<Source>} open
   */
  async #open(kind, open) {
    const opening = ++this.#opening;
    const again = () => this.#open(kind, open);
    this.#last = kind === "camera" ? () => this.camera() : again;
    const asked = setTimeout(() => {
      if (kind !== "camera" || this.source) return;
      this.#states.asking("The browser asks whether this page may use the camera.");
    }, ASKED_MS);
    try {
      const source = await open();
      if (opening !== this.#opening) return source.stop(); // another was asked for meanwhile
      this.stop();
      this.#opening = opening;
      this.#show(source);
    } catch (error) {
      if (opening !== this.#opening) return;
      const problem = problemOf(error, kind, location);
      // What runs goes on when another source cannot be opened.
      if (this.source) this.#states.notice(`${problem.title}. ${problem.text}`);
      else this.#states.problem(problem, () => void this.#last());
    } finally {
      clearTimeout(asked);
    }
  }

  /** @param {Source} source */
  #show(source) {
    this.source = source;
    source.onend = (why) => {
      if (this.source !== source) return;
      this.stop();
      this.#states.problem({ title: "The picture has ended", text: why }, () => void this.#last());
    };
    element("view", HTMLElement).replaceChildren(source.view);
    this.onchange(source);
  }

  async #offerCameras() {
    const cameras = await listCameras();
    const phone = matchMedia("(pointer: coarse)").matches;
    this.#flip.hidden = !phone || cameras.length < 2;
    element("cameras", HTMLElement).hidden = phone || cameras.length < 2;
    const options = cameras.map(({ deviceId, label }) => {
      return make("option", { value: deviceId, textContent: label, selected: label === this.source?.label });
    });
    this.#cameras.replaceChildren(...options);
  }

  #takeFiles() {
    const input = element("file", HTMLInputElement);
    const take = (/** @type {File | undefined} */ file) => {
      if (file) void this.#open(file.type.startsWith("image/") ? "picture" : "film", () => openFile(file));
    };
    input.onchange = () => {
      take(input.files?.[0]);
      input.value = ""; // the same file may be chosen again
    };
    document.addEventListener("dragover", (event) => {
      event.preventDefault();
      document.body.dataset.dragging = "";
    });
    document.addEventListener("dragleave", (event) => {
      if (!event.relatedTarget) delete document.body.dataset.dragging;
    });
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      delete document.body.dataset.dragging;
      take(event.dataTransfer?.files[0]);
    });
  }
}
