// One source at a time: opens the one that is asked for, puts its view on the page, says what is wrong.

import { element, make, within } from "./elements.js";
import { nameOf, problemOf } from "./problems.js";
import { openSample } from "./sample.js";
import { listCameras, openCamera, openFile, openScreen } from "./source.js";

/** @import { Problem } from "./problems.js" */
/** @import { Source } from "./source.js" */
/** @import { States } from "./states.js" */

const ASKED_MS = 600; // a camera that was allowed before opens within that
/** @type {Record<string, string>} */
const ASKING = {
  camera: "The browser asks whether this page may use the camera.",
  screen: "The browser asks what to share.",
};

/** @typedef {{deviceId?: string, facing?: "user" | "environment"}} CameraChoice */

export class Switcher {
  /** @type {Source | null} */
  source = null;
  /** Whether one is being opened, which may take as long as a person needs to allow it. */
  opening = false;
  /** Called when `source` or `opening` has changed. */
  onchange = () => {};
  #states;
  #turn = 0;
  /** @type {CameraChoice} */
  #choice = {};
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
      void this.camera({ facing: this.#choice.facing === "environment" ? "user" : "environment" });
    };
    this.#takeFiles();
  }

  /** @param {CameraChoice} [choice] The one of last time, where none is given. */
  async camera(choice = this.#choice) {
    this.#choice = choice;
    await this.#open("camera", () => this.#openChosen(choice));
    if (this.source?.kind === "camera") await this.#offerCameras();
  }

  sample() {
    return this.#open("sample", () => openSample(new URL("scene.jpg", import.meta.url).href));
  }

  again() {
    return this.#last();
  }

  /** Puts away what is shown, and gives up what is being opened. */
  stop() {
    this.#turn += 1;
    this.opening = false;
    this.#states.shown();
    this.#putAway();
    this.onchange();
  }

  /** Puts away what is shown; what is being opened is another matter. */
  release() {
    if (!this.source) return;
    this.#putAway();
    this.onchange();
  }

  /**
   * @param {Source["kind"]} kind
   * @param {() => Promise<Source>} open
   */
  async #open(kind, open) {
    const turn = ++this.#turn;
    this.opening = true;
    this.#last = kind === "camera" ? () => this.camera() : () => this.#open(kind, open);
    if (kind === "camera" && this.source?.kind === "camera") this.#putAway(); // a phone opens one camera at a time
    this.#states.opening();
    this.onchange();
    const asked = setTimeout(() => {
      if (this.source || turn !== this.#turn) return;
      this.#states.asking(ASKING[kind] ?? "The picture is being opened.");
    }, ASKED_MS);
    try {
      const source = await open();
      if (turn !== this.#turn) return source.stop(); // another was asked for meanwhile
      this.opening = false;
      this.#putAway();
      this.#show(source);
    } catch (error) {
      if (turn !== this.#turn) return;
      this.opening = false;
      this.#missing(problemOf(error, kind, location));
    } finally {
      clearTimeout(asked);
    }
  }

  /**
   * What was chosen last time may be unplugged by now.
   * @param {CameraChoice} choice
   */
  async #openChosen(choice) {
    try {
      return await openCamera(choice);
    } catch (error) {
      if (!choice.deviceId || nameOf(error) !== "OverconstrainedError") throw error;
      this.#choice = {};
      return openCamera({});
    }
  }

  /** @param {Source} source */
  #show(source) {
    this.source = source;
    source.onend = (why) => {
      if (this.source !== source) return;
      this.#putAway();
      if (this.opening) this.onchange();
      else this.#missing({ title: "The picture has ended", text: why });
    };
    element("view", HTMLElement).replaceChildren(source.view);
    this.onchange();
    this.#states.shown();
  }

  /** @param {Problem} problem */
  #missing(problem) {
    this.onchange();
    // What runs goes on when another source cannot be opened.
    if (this.source) this.#states.notice(`${problem.title}. ${problem.text}`, "picture");
    else this.#states.problem(problem, () => void this.#last());
  }

  #putAway() {
    this.source?.stop();
    this.source = null;
    element("view", HTMLElement).replaceChildren();
    element("cameras", HTMLElement).hidden = this.#flip.hidden = true;
  }

  async #offerCameras() {
    const cameras = await listCameras();
    if (this.source?.kind !== "camera") return;
    const phone = matchMedia("(pointer: coarse)").matches;
    this.#flip.hidden = !phone || cameras.length < 2;
    element("cameras", HTMLElement).hidden = phone || cameras.length < 2;
    const chosen = this.source.deviceId;
    const options = cameras.map(({ deviceId, label }) => {
      return make("option", { value: deviceId, textContent: label, selected: deviceId === chosen });
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
