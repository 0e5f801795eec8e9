// Where pictures come from: camera, screen, a film, a picture. (The built-in sample is in sample.js.)
//
// Every source has a `view` to put on the page, and calls `onframe` whenever that shows a new picture.

import { BrokenPictureError, kindOf } from "./files.js";

/**
 * @typedef {object} Source
 * @property {"camera" | "screen" | "film" | "picture" | "sample"} kind
 * @property {string} label
 * @property {string} [deviceId] Of a camera.
 * @property {HTMLVideoElement | HTMLCanvasElement} view
 * @property {number} width Of the picture, pixels.
 * @property {number} height
 * @property {(capturedAt: number) => void} onframe `performance.now()`'s clock.
 * @property {(why: string) => void} onend It ended by itself: unplugged, sharing stopped.
 * @property {() => void} [onjump] It goes on somewhere else: a film was sought in, or began again.
 * @property {() => void} stop
 */

const CAMERA = { width: { ideal: 1280 }, height: { ideal: 720 }, frameRate: { ideal: 30 } };
const PICTURES_PER_S = 5;
const LEARN_MS = 10_000;

/** What was opened plays, and shows nothing: a recording of sound. */
export class NoPictureError extends Error {
  name = "NoPictureError";
}

/**
 * A video element as a source.
 * @implements {Source}
 */
export class VideoSource {
  /** @type {(capturedAt: number) => void} */
  onframe = () => {};
  /** @type {(why: string) => void} */
  onend = () => {};
  onjump = () => {};
  view = Object.assign(document.createElement("video"), { muted: true, playsInline: true });
  /**
   * Of a camera.
   * @type {string | undefined}
   */
  deviceId;
  #stopped = false;
  #cleanUp;
  #lastTime = -1;
  /** @type {ReturnType<typeof setInterval> | undefined} */
  #paused;

  /**
   * @param {"camera" | "screen" | "film"} kind
   * @param {string} label
   * @param {() => void} cleanUp
   */
  constructor(kind, label, cleanUp) {
    this.kind = kind;
    this.label = label;
    this.#cleanUp = cleanUp;
  }

  get width() {
    return this.view.videoWidth;
  }

  get height() {
    return this.view.videoHeight;
  }

  /**
   * Plays it.
   * @returns {Promise<this>}
   */
  async start() {
    try {
      await this.view.play();
      // Cameras and screens are pictures by nature, and some browsers know their size a little later.
      if (this.kind === "film" && !this.width) throw new NoPictureError("it has no video track");
      if (this.kind === "film" && this.view.duration === Infinity) await learnDuration(this.view);
      this.view.loop = true;
    } catch (error) {
      this.stop();
      throw error;
    }
    this.#watch();
    if (this.kind === "film") this.#asFilm();
    return this;
  }

  stop() {
    this.#stopped = true;
    clearInterval(this.#paused);
    this.view.pause();
    this.view.srcObject = null;
    this.view.removeAttribute("src");
    this.#cleanUp();
  }

  /** A film that is paused is a picture, sent as one. */
  #asFilm() {
    this.view.onseeking = () => this.onjump();
    this.#paused = setInterval(() => {
      if (this.view.paused && !this.view.seeking) this.onframe(performance.now());
    }, 1000 / PICTURES_PER_S);
  }

  #watch() {
    if (this.#stopped) return;
    if ("requestVideoFrameCallback" in this.view) {
      this.view.requestVideoFrameCallback((now, { captureTime, presentationTime }) => {
        this.#watch();
        if (this.width) this.onframe(captureTime ?? Math.min(now, presentationTime));
      });
      return;
    }
    requestAnimationFrame((now) => {
      this.#watch();
      if (this.view.currentTime === this.#lastTime || !this.width) return;
      this.#lastTime = this.view.currentTime;
      this.onframe(now);
    });
  }
}

/**
 * A still picture, sent a few times a second so that changed settings show.
 * @implements {Source}
 */
export class PictureSource {
  /** @type {"picture"} */
  kind = "picture";
  /** @type {(capturedAt: number) => void} */
  onframe = () => {};
  onend = () => {};
  view = document.createElement("canvas");
  #timer;

  /**
   * @param {ImageBitmap} picture
   * @param {string} label
   */
  constructor(picture, label) {
    this.label = label;
    Object.assign(this.view, { width: picture.width, height: picture.height });
    this.view.getContext("2d")?.drawImage(picture, 0, 0);
    picture.close();
    this.#timer = setInterval(() => this.onframe(performance.now()), 1000 / PICTURES_PER_S);
  }

  get width() {
    return this.view.width;
  }

  get height() {
    return this.view.height;
  }

  stop() {
    clearInterval(this.#timer);
  }
}

/**
 * The camera that is asked for, or any.
 * @param {{deviceId?: string, facing?: "user" | "environment"}} [choice]
 */
export async function openCamera({ deviceId, facing } = {}) {
  requireMedia("getUserMedia");
  const which = deviceId ? { deviceId: { exact: deviceId } } : facing ? { facingMode: facing } : {};
  const stream = await navigator.mediaDevices.getUserMedia({ video: { ...CAMERA, ...which }, audio: false });
  return fromStream("camera", stream, "The camera was disconnected.");
}

export async function openScreen() {
  requireMedia("getDisplayMedia");
  const stream = await navigator.mediaDevices.getDisplayMedia({ video: { frameRate: { ideal: 30 } }, audio: false });
  return fromStream("screen", stream, "The screen is no longer shared.");
}

/**
 * A film or a picture, from the disk of whoever chose it.
 * @param {File} file
 * @returns {Promise<Source>}
 */
export async function openFile(file) {
  if ((await kindOf(file)) === "picture") return new PictureSource(await decode(file), file.name);
  const url = URL.createObjectURL(file);
  const source = new VideoSource("film", file.name, () => URL.revokeObjectURL(url));
  source.view.src = url;
  return source.start();
}

/** @param {File} file */
async function decode(file) {
  try {
    return await createImageBitmap(file);
  } catch (error) {
    throw new BrokenPictureError(error instanceof Error ? error.message : String(error));
  }
}

/**
 * What a browser records says nowhere how long it is. Who goes to its end finds out; then one can seek in it.
 * @param {HTMLVideoElement} film Plays, from its beginning again at the end.
 */
async function learnDuration(film) {
  film.pause();
  await new Promise((resolve) => {
    const late = setTimeout(resolve, LEARN_MS); // then without
    film.ondurationchange = () => {
      if (film.duration === Infinity) return;
      clearTimeout(late);
      resolve(undefined);
    };
    film.currentTime = Number.MAX_SAFE_INTEGER;
  });
  film.ondurationchange = null;
  film.currentTime = 0;
  await film.play();
}

/** Cameras by name. Empty names before one was allowed. */
export async function listCameras() {
  const devices = (await navigator.mediaDevices?.enumerateDevices()) ?? [];
  return devices
    .filter(({ kind, deviceId }) => kind === "videoinput" && deviceId)
    .map(({ deviceId, label }, index) => ({ deviceId, label: label || `Camera ${index + 1}` }));
}

/**
 * @param {"camera" | "screen"} kind
 * @param {MediaStream} stream
 * @param {string} ended
 */
function fromStream(kind, stream, ended) {
  const [track] = stream.getVideoTracks();
  const source = new VideoSource(kind, track.label || kind, () => stream.getTracks().forEach((one) => one.stop()));
  track.onended = () => source.onend(ended);
  source.deviceId = track.getSettings().deviceId;
  source.view.srcObject = stream;
  return source.start();
}

/** @param {"getUserMedia" | "getDisplayMedia"} method */
function requireMedia(method) {
  if (navigator.mediaDevices?.[method]) return;
  throw new DOMException("not offered here", isSecureContext ? "NotSupportedError" : "InsecureContextError");
}
