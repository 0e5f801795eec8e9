// Switches between sources, explains what is wrong with one, and controls the playback of a video file.

import { element, make, setText, within } from "./elements.js";
import { listCameras, openCamera, openFile, openSample, openScreen } from "./source.js";
import { clock } from "./text.js";

/** @import { Source } from "./source.js" */
/** @import { StateMachine } from "./state-machine.js" */
/** @typedef {{title: string, text: string}} Problem */

const PROMPT_MS = 600; // a camera that the user has allowed earlier opens within this time, so that the page shows no prompt
/** @type {Record<string, string>} */
const PROMPTS = {
  camera: "The browser asks whether this page may use the camera.",
  screen: "The browser asks what to share.",
};

/** @typedef {{deviceId?: string, facing?: "user" | "environment"}} CameraChoice */

/** Opens the requested source, one at a time, shows its view on the page and reports what is wrong with it. */
export class SourceSwitch {
  /** @type {Source | null} */
  source = null;
  /** Whether a source is being opened, which may take as long as the user needs to allow it. */
  opening = false;
  /** Called when `source` or `opening` has changed. */
  onchange = () => {};
  #machine;
  #attempt = 0;
  /** @type {CameraChoice} */
  #choice = {};
  #cameras = within(element("cameras", HTMLLabelElement), "select", HTMLSelectElement);
  #flip = element("flip", HTMLButtonElement);
  /** Opens the last source again. */
  #last = () => this.camera();

  /** @param {StateMachine} machine */
  constructor(machine) {
    this.#machine = machine;
    element("camera", HTMLButtonElement).onclick = () => void this.camera();
    element("sample", HTMLButtonElement).onclick = () => void this.sample();
    element("screen", HTMLButtonElement).onclick = () => void this.#open("screen", openScreen);
    this.#cameras.onchange = () => void this.camera({ deviceId: this.#cameras.value });
    this.#flip.onclick = () => {
      void this.camera({ facing: this.#choice.facing === "environment" ? "user" : "environment" });
    };
    this.#acceptFiles();
  }

  /**
   * Opens a camera.
   * @param {CameraChoice} [choice] By default the last choice.
   */
  async camera(choice = this.#choice) {
    this.#choice = choice;
    await this.#open("camera", () => this.#openChosen(choice));
    if (this.source?.kind === "camera") await this.#offerCameras();
  }

  /** Opens the built-in sample. */
  sample() {
    return this.#open("sample", () => openSample(new URL("scene.jpg", import.meta.url).href));
  }

  /** Opens the last source again. */
  again() {
    return this.#last();
  }

  /** Closes the shown source and abandons the one being opened. */
  stop() {
    this.#attempt += 1;
    this.opening = false;
    this.#machine.sourceShown();
    this.#close();
    this.onchange();
  }

  /** Closes the shown source; a source being opened is not affected. */
  release() {
    if (!this.source) return;
    this.#close();
    this.onchange();
  }

  /**
   * Opens a source, unless the user asks for another or stops meanwhile.
   * @param {Source["kind"]} kind
   * @param {() => Promise<Source>} open
   */
  async #open(kind, open) {
    const attempt = ++this.#attempt;
    this.opening = true;
    this.#last = kind === "camera" ? () => this.camera() : () => this.#open(kind, open);
    if (kind === "camera" && this.source?.kind === "camera") this.#close(); // a phone opens only one camera at a time
    this.#machine.sourceOpening();
    this.onchange();
    const promptTimer = setTimeout(() => {
      if (this.source || attempt !== this.#attempt) return;
      this.#machine.prompting(PROMPTS[kind] ?? "The source is being opened.");
    }, PROMPT_MS);
    try {
      const source = await open();
      if (attempt !== this.#attempt) return source.stop(); // the user asked for another source meanwhile
      this.opening = false;
      this.#close();
      this.#show(source);
    } catch (error) {
      if (attempt !== this.#attempt) return;
      this.opening = false;
      this.#fail(problemOf(error, kind, location));
    } finally {
      clearTimeout(promptTimer);
    }
  }

  /**
   * Opens the chosen camera, or any where that one has been unplugged.
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

  /**
   * Shows a source until it ends.
   * @param {Source} source
   */
  #show(source) {
    this.source = source;
    source.onend = (why) => {
      if (this.source !== source) return;
      this.#close();
      if (this.opening) this.onchange();
      else this.#fail({ title: "The source has ended", text: why });
    };
    element("view", HTMLElement).replaceChildren(source.view);
    this.onchange();
    this.#machine.sourceShown();
  }

  /** @param {Problem} problem */
  #fail(problem) {
    this.onchange();
    // The shown source stays when another one cannot be opened.
    if (this.source) this.#machine.notice(`${problem.title}. ${problem.text}`, "source");
    else this.#machine.problem(problem, () => void this.#last());
  }

  #close() {
    this.source?.stop();
    this.source = null;
    element("view", HTMLElement).replaceChildren();
    element("cameras", HTMLElement).hidden = this.#flip.hidden = true;
  }

  /** Offers the other cameras: a button to flip on a phone, else a list. */
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

  /** Opens files that the user chooses or drops on the page. */
  #acceptFiles() {
    const input = element("file", HTMLInputElement);
    const open = (/** @type {File | undefined} */ file) => {
      if (file) void this.#open(file.type.startsWith("image/") ? "image" : "video", () => openFile(file));
    };
    input.onchange = () => {
      open(input.files?.[0]);
      input.value = ""; // so that the user can choose the same file again
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
      open(event.dataTransfer?.files[0]);
    });
  }
}

// --- problems ---

/** @type {Record<string, string>} */
const KINDS = { camera: "camera", screen: "screen", video: "video", image: "image", sample: "sample" };

/**
 * What is wrong with a source and what the user can do about it.
 * @param {unknown} error As thrown by the browser or by `source.js`.
 * @param {string} kind Of the requested source.
 * @param {{hostname: string, port: string}} place Address of the page.
 * @returns {Problem}
 */
export function problemOf(error, kind, { hostname, port }) {
  const name = nameOf(error);
  const detail = hasMessage(error) ? String(error.message) : String(error);
  if (name === "InsecureContextError") {
    return {
      title: `Browsers offer the ${KINDS[kind]} to secure pages only`,
      text:
        `This page was loaded from ${hostname} over plain http. Open it over https, or, on the machine that runs the ` +
        `service, as http://localhost${port ? `:${port}` : ""}. The sample and files also work here.`,
    };
  }
  if (name === "NoVideoTrackError") {
    return {
      title: "This file has no video",
      text: "It contains only sound. Open a video or an image, or try the sample.",
    };
  }
  if (name === "UnsupportedFileError") {
    return { title: "This file cannot be opened", text: `${detail} Browsers open MP4 (H.264), WebM and most images.` };
  }
  if (name === "BrokenImageError") {
    return {
      title: "This image cannot be shown",
      text: `Browsers show JPEG, PNG, WebP, GIF and AVIF. Convert it, or open another image. (${detail})`,
    };
  }
  if (kind === "camera") return cameraProblem(name, detail);
  if (kind === "screen") return screenProblem(name, detail);
  return {
    title: `This ${KINDS[kind] ?? "file"} cannot be shown`,
    text:
      "Browsers open MP4 (H.264), WebM and most images. Convert it, for example with " +
      `ffmpeg -i video.mov video.webm, or open another file. (${detail})`,
  };
}

/**
 * @param {string} name
 * @param {string} detail
 * @returns {Problem}
 */
function cameraProblem(name, detail) {
  switch (name) {
    case "NotAllowedError":
    case "SecurityError":
      return /system/i.test(detail)
        ? {
            title: "The system does not let this browser use the camera",
            text: "Allow the browser to use the camera in the system's privacy settings, then try again.",
          }
        : {
            title: "The camera was refused",
            text:
              "Allow it for this page: press the camera icon (or the icon before the address) in the address bar, " +
              "choose Allow, then try again.",
          };
    case "NotFoundError":
      return {
        title: "No camera was found",
        text: "Plug one in and try again. Without one, try the sample, or open a video or an image.",
      };
    case "NotReadableError":
    case "AbortError":
      return {
        title: "The camera is busy",
        text: `Another program or page is using it. Close that, then try again. (${detail})`,
      };
    case "OverconstrainedError":
      return {
        title: "The chosen camera is gone",
        text: "It has been unplugged, or it does not offer the requested size or rate. Try again with another camera.",
      };
    case "NotSupportedError":
      return { title: "This browser offers no camera", text: "Use another browser, the sample or a file." };
    default:
      return { title: "The camera does not start", text: `Try again, or use the sample or a file. (${detail})` };
  }
}

/**
 * @param {string} name
 * @param {string} detail
 * @returns {Problem}
 */
function screenProblem(name, detail) {
  if (name === "NotAllowedError") {
    return {
      title: "The screen is not shared",
      text: "No screen was chosen. Press Share screen again and choose a screen or a window.",
    };
  }
  if (name === "NotSupportedError") {
    return {
      title: "This browser cannot share the screen",
      text: "Most phones cannot. Use a desktop browser, the camera, the sample or a file.",
    };
  }
  return { title: "The screen is not shared", text: `Try again. (${detail})` };
}

/**
 * The name of an error. In some browsers `OverconstrainedError` is no `Error`.
 * @param {unknown} error
 */
function nameOf(error) {
  return typeof error === "object" && error !== null && "name" in error ? String(error.name) : "";
}

/**
 * @param {unknown} error
 * @returns {error is {message: unknown}}
 */
function hasMessage(error) {
  return typeof error === "object" && error !== null && "message" in error;
}

// --- playback ---

const FINE_S = 0.1; // step of the arrow keys …
const COARSE_S = 1; // … and their step in videos longer than LONG_S
const LONG_S = 30;

/** The controls of a video file: pause, play, position. A camera has none. */
export class Player {
  #root = element("player", HTMLDivElement);
  #button = within(this.#root, "button", HTMLButtonElement);
  #position = within(this.#root, "input", HTMLInputElement);
  #time = within(this.#root, "output", HTMLOutputElement);
  /** @type {HTMLVideoElement | null} */
  #video = null;
  #ends = new AbortController();

  constructor() {
    this.#button.onclick = () => this.toggle();
    this.#position.oninput = () => {
      if (!this.#video) return;
      this.#video.currentTime = Number(this.#position.value);
      this.#showTime();
    };
  }

  /** @param {HTMLVideoElement | null} video Null: the source is not a video file. */
  attach(video) {
    this.#ends.abort();
    this.#ends = new AbortController();
    this.#video = video;
    this.#root.hidden = !video;
    if (!video) return;
    const { signal } = this.#ends;
    for (const event of ["play", "pause"]) video.addEventListener(event, () => this.#showButton(), { signal });
    for (const event of ["timeupdate", "seeked"]) video.addEventListener(event, () => this.#follow(), { signal });
    video.addEventListener("durationchange", () => this.#measure(), { signal });
    this.#measure();
    this.#showButton();
  }

  /** Pauses the video or plays it on; does nothing without a video. */
  toggle() {
    if (this.#video?.paused) void this.#video.play().catch(() => {}); // the source was closed meanwhile
    else this.#video?.pause();
  }

  #measure() {
    const duration = this.#video?.duration ?? NaN;
    const known = Number.isFinite(duration) && duration > 0;
    this.#position.disabled = !known;
    this.#position.max = known ? String(duration) : "1";
    this.#position.step = duration > LONG_S ? String(COARSE_S) : String(FINE_S);
    this.#follow();
  }

  #follow() {
    if (this.#video && !this.#video.seeking && !this.#position.matches(":active")) this.#position.value = String(this.#video.currentTime);
    this.#showTime();
  }

  #showTime() {
    if (!this.#video) return;
    const { duration } = this.#video;
    const at = clock(this.#video.currentTime);
    const all = Number.isFinite(duration) ? clock(duration) : null;
    setText(this.#time, all ? `${at} / ${all}` : at);
    this.#position.setAttribute("aria-valuetext", all ? `${at} of ${all}` : at);
  }

  #showButton() {
    setText(this.#button, this.#video?.paused ? "Play" : "Pause");
  }
}
