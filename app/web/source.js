// Sources of frames: camera, screen, video or image file, and the built-in sample.

/**
 * @typedef {object} Source
 * @property {"camera" | "screen" | "video" | "image" | "sample"} kind
 * @property {string} label
 * @property {string} [deviceId] Id of the device of a camera.
 * @property {HTMLVideoElement | HTMLCanvasElement} view The element to show.
 * @property {number} width Of the current frame, pixels; 0 while unknown.
 * @property {number} height
 * @property {(capturedAt: number) => void} onframe Called whenever `view` shows a new frame, on the clock of `performance.now()`.
 * @property {(why: string) => void} onend Called when the source ends by itself: a camera was unplugged, sharing stopped.
 * @property {() => void} [onjump] Called when a video continues at another position: the user sought in it, or it began again.
 * @property {() => void} stop
 */
/** @typedef {"video" | "image"} FileKind A sound file counts as a video here; `VideoSource.start` rejects it. */

const CAMERA = { width: { ideal: 1280 }, height: { ideal: 720 }, frameRate: { ideal: 30 } };
const STILL_FRAMES_PER_S = 5; // of an image or a paused video, so that changed settings show
const DURATION_MS = 10_000; // longest wait for the duration of a video

/** The file plays but has no video track: it is a recording of sound. */
class NoVideoTrackError extends Error {
  name = "NoVideoTrackError";
}

/**
 * A video element as a source: a camera, a screen or a video file.
 * @implements {Source}
 */
class VideoSource {
  /** @type {(capturedAt: number) => void} */
  onframe = () => {};
  /** @type {(why: string) => void} */
  onend = () => {};
  onjump = () => {};
  view = Object.assign(document.createElement("video"), { muted: true, playsInline: true });
  /**
   * Id of the device of a camera.
   * @type {string | undefined}
   */
  deviceId;
  #stopped = false;
  #cleanUp;
  #lastTime = -1;
  /** @type {ReturnType<typeof setInterval> | undefined} */
  #paused;

  /**
   * @param {"camera" | "screen" | "video"} kind
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
   * Starts to play.
   * @returns {Promise<this>}
   * @throws {NoVideoTrackError}
   */
  async start() {
    try {
      await this.view.play();
      // Cameras and screens always have a video track, and some browsers learn its size a little later.
      if (this.kind === "video" && !this.width) throw new NoVideoTrackError("it has no video track");
      if (this.kind === "video" && this.view.duration === Infinity) await learnDuration(this.view);
      this.view.loop = true;
    } catch (error) {
      this.stop();
      throw error;
    }
    this.#watch();
    if (this.kind === "video") this.#watchAsVideo();
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

  /** Reports jumps, and reports frames while the video is paused, because the page sends a paused video like an image. */
  #watchAsVideo() {
    this.view.onseeking = () => this.onjump();
    this.#paused = setInterval(() => {
      if (this.view.paused && !this.view.seeking) this.onframe(performance.now());
    }, 1000 / STILL_FRAMES_PER_S);
  }

  /** Reports each frame that the element shows. */
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
 * An image as a source.
 * @implements {Source}
 */
class ImageSource {
  /** @type {"image"} */
  kind = "image";
  /** @type {(capturedAt: number) => void} */
  onframe = () => {};
  onend = () => {};
  view = document.createElement("canvas");
  #timer;

  /**
   * @param {ImageBitmap} image
   * @param {string} label
   */
  constructor(image, label) {
    this.label = label;
    Object.assign(this.view, { width: image.width, height: image.height });
    this.view.getContext("2d")?.drawImage(image, 0, 0);
    image.close();
    this.#timer = setInterval(() => this.onframe(performance.now()), 1000 / STILL_FRAMES_PER_S);
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
 * Opens the chosen camera, or any.
 * @param {{deviceId?: string, facing?: "user" | "environment"}} [choice]
 */
export async function openCamera({ deviceId, facing } = {}) {
  requireMedia("getUserMedia");
  const which = deviceId ? { deviceId: { exact: deviceId } } : facing ? { facingMode: facing } : {};
  const stream = await navigator.mediaDevices.getUserMedia({ video: { ...CAMERA, ...which }, audio: false });
  return fromStream("camera", stream, "The camera was disconnected.");
}

/** Opens a screen or window that the user chooses. */
export async function openScreen() {
  requireMedia("getDisplayMedia");
  const stream = await navigator.mediaDevices.getDisplayMedia({ video: { frameRate: { ideal: 30 } }, audio: false });
  return fromStream("screen", stream, "The screen is no longer shared.");
}

/**
 * Opens a video or an image from the user's disk.
 * @param {File} file
 * @returns {Promise<Source>}
 */
export async function openFile(file) {
  if ((await kindOf(file)) === "image") return new ImageSource(await decode(file), file.name);
  const url = URL.createObjectURL(file);
  const source = new VideoSource("video", file.name, () => URL.revokeObjectURL(url));
  source.view.src = url;
  return source.start();
}

/**
 * @param {File} file
 * @throws {BrokenImageError}
 */
async function decode(file) {
  try {
    return await createImageBitmap(file);
  } catch (error) {
    throw new BrokenImageError(error instanceof Error ? error.message : String(error));
  }
}

/**
 * Finds the duration of a video by seeking to its end, so that the user can seek in it. Recordings of browsers do not contain
 * their duration.
 * @param {HTMLVideoElement} video Plays; plays from its beginning afterwards.
 */
async function learnDuration(video) {
  video.pause();
  await new Promise((resolve) => {
    const late = setTimeout(resolve, DURATION_MS); // then the duration stays unknown
    video.ondurationchange = () => {
      if (video.duration === Infinity) return;
      clearTimeout(late);
      resolve(undefined);
    };
    video.currentTime = Number.MAX_SAFE_INTEGER;
  });
  video.ondurationchange = null;
  video.currentTime = 0;
  await video.play();
}

/** The cameras and their names; `Camera 1` and so on before the user has allowed one. */
export async function listCameras() {
  const devices = (await navigator.mediaDevices?.enumerateDevices()) ?? [];
  return devices
    .filter(({ kind, deviceId }) => kind === "videoinput" && deviceId)
    .map(({ deviceId, label }, index) => ({ deviceId, label: label || `Camera ${index + 1}` }));
}

/**
 * Plays a stream as a source.
 * @param {"camera" | "screen"} kind
 * @param {MediaStream} stream
 * @param {string} ended The sentence for `onend`.
 */
function fromStream(kind, stream, ended) {
  const [track] = stream.getVideoTracks();
  const source = new VideoSource(kind, track.label || kind, () => stream.getTracks().forEach((track) => track.stop()));
  track.onended = () => source.onend(ended);
  source.deviceId = track.getSettings().deviceId;
  source.view.srcObject = stream;
  return source.start();
}

/**
 * Checks that the browser offers a method.
 * @param {"getUserMedia" | "getDisplayMedia"} method
 * @throws {DOMException} If the browser does not offer it at all, or not to an insecure page.
 */
function requireMedia(method) {
  if (navigator.mediaDevices?.[method]) return;
  throw new DOMException("not offered here", isSecureContext ? "NotSupportedError" : "InsecureContextError");
}

// --- kinds of files ---

const SIGNATURE_BYTES = 512;
const IMAGE_BRANDS = ["avif", "avis", "heic", "heix", "heif", "mif1", "msf1"]; // brands of ISO media files
const BOXES = ["moov", "mdat", "wide", "free", "skip", "pnot"]; // the first boxes of QuickTime files without a brand
const SIGNATURES = /** @type {[FileKind, number[]][]} */ ([
  ["image", [0xff, 0xd8, 0xff]], // JPEG
  ["image", [0x89, 0x50, 0x4e, 0x47]], // PNG
  ["image", [0x47, 0x49, 0x46, 0x38]], // GIF
  ["image", [0x49, 0x49, 0x2a, 0x00]], // TIFF
  ["image", [0x4d, 0x4d, 0x00, 0x2a]],
  ["video", [0x1a, 0x45, 0xdf, 0xa3]], // Matroska, WebM
  ["video", [0x4f, 0x67, 0x67, 0x53]], // Ogg
  ["video", [0x00, 0x00, 0x01, 0xba]], // MPEG program stream
  ["video", [0x00, 0x00, 0x01, 0xb3]], // MPEG video
  ["video", [0x46, 0x4c, 0x56, 0x01]], // FLV
  ["video", [0x30, 0x26, 0xb2, 0x75]], // ASF, WMV
  ["video", [...new TextEncoder().encode("YUV4MPEG2")]],
  ["video", [...new TextEncoder().encode("fLaC")]],
  ["video", [...new TextEncoder().encode("ID3")]], // MP3
]);

/** The file is neither a video nor an image, or is empty or unreadable. */
class UnsupportedFileError extends Error {
  name = "UnsupportedFileError";
}

/** The file is an image by its type, but the browser cannot decode it. */
class BrokenImageError extends Error {
  name = "BrokenImageError";
}

/**
 * The kind of a file: by its first bytes, else by the type that the browser names.
 * @param {Blob & {name: string}} file
 * @returns {Promise<FileKind>}
 * @throws {UnsupportedFileError}
 */
export async function kindOf(file) {
  const [type] = file.type.split("/");
  /** @type {Uint8Array} */
  let bytes;
  try {
    bytes = new Uint8Array(await file.slice(0, SIGNATURE_BYTES).arrayBuffer());
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    throw new UnsupportedFileError(`“${file.name}” cannot be read; a folder cannot be opened. (${why})`);
  }
  if (!bytes.length) throw new UnsupportedFileError(`“${file.name}” is empty.`);
  const found = kindFrom(bytes);
  if (found) return found;
  if (type === "image") return "image";
  if (type === "video" || type === "audio") return "video";
  throw new UnsupportedFileError(`“${file.name}” is neither a video nor an image.`);
}

/**
 * The kind of a file by its first bytes.
 * @param {Uint8Array} bytes
 * @returns {FileKind | null} Null: unknown.
 */
function kindFrom(bytes) {
  for (const [kind, signature] of SIGNATURES) if (signature.every((byte, at) => bytes[at] === byte)) return kind;
  const code = (/** @type {number} */ at) => String.fromCharCode(...bytes.subarray(at, at + 4));
  if (code(4) === "ftyp") return IMAGE_BRANDS.includes(code(8)) ? "image" : "video";
  if (BOXES.includes(code(4))) return "video";
  if (code(0) === "RIFF") return code(8) === "WEBP" ? "image" : "video"; // AVI, WAVE
  if (code(0).startsWith("BM") && bytes[6] === 0 && bytes[7] === 0) return "image";
  if (bytes[0] === 0xff && (bytes[1] & 0xe6) === 0xe2) return "video"; // MP3 without a tag
  return bytes[0] === 0x47 && bytes[188] === 0x47 && bytes[376] === 0x47 ? "video" : null; // MPEG transport stream
}

// --- the built-in sample ---

const WIDTH = 640;
const HEIGHT = 480;
const FRAMES_PER_S = 30;
const SIGN = { text: "GATE 7 EXIT", width: 250, height: 60, y: 404 };
const SIGN_PLACES = [14, 376];
const SIGN_REST_MS = 6000;
const SIGN_MOVE_MS = 1500;

/**
 * The built-in sample: a photograph, slowly panned and zoomed, and a printed sign that moves over it. The page draws it, so
 * that a first look at the service needs neither a codec nor a camera.
 * @implements {Source}
 */
class SampleSource {
  /** @type {"sample"} */
  kind = "sample";
  label = "sample";
  width = WIDTH;
  height = HEIGHT;
  /** @type {(capturedAt: number) => void} */
  onframe = () => {};
  onend = () => {};
  view = Object.assign(document.createElement("canvas"), { width: WIDTH, height: HEIGHT });
  #photograph;
  #context = /** @type {CanvasRenderingContext2D} */ (this.view.getContext("2d", { alpha: false }));
  #started = performance.now();
  #drawnAt = -Infinity;
  #request = 0;

  /** @param {ImageBitmap} photograph */
  constructor(photograph) {
    this.#photograph = photograph;
    this.#paint(0);
    this.#next();
  }

  stop() {
    cancelAnimationFrame(this.#request);
    this.#photograph.close();
  }

  #next() {
    this.#request = requestAnimationFrame((now) => {
      this.#next();
      if (now - this.#drawnAt < 1000 / FRAMES_PER_S - 2) return;
      this.#drawnAt = now;
      this.#paint(Math.max(0, now - this.#started));
      this.onframe(now);
    });
  }

  /** @param {number} ms Time since the start. */
  #paint(ms) {
    const context = this.#context;
    const { x, y, width, height } = viewAt(ms, this.#photograph.width, this.#photograph.height);
    context.drawImage(this.#photograph, x, y, width, height, 0, 0, WIDTH, HEIGHT);
    const left = signAt(ms);
    context.fillStyle = "#f7f7f2";
    context.fillRect(left, SIGN.y, SIGN.width, SIGN.height);
    context.lineWidth = 3;
    context.strokeStyle = "#15171a";
    context.strokeRect(left + 1.5, SIGN.y + 1.5, SIGN.width - 3, SIGN.height - 3);
    context.fillStyle = "#15171a";
    context.font = "700 34px Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif";
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.fillText(SIGN.text, left + SIGN.width / 2, SIGN.y + SIGN.height / 2 + 2, SIGN.width - 20);
  }
}

/**
 * Opens the built-in sample.
 * @param {string} url Address of the photograph.
 */
export async function openSample(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`the sample's photograph could not be loaded: status ${response.status}`);
  return new SampleSource(await createImageBitmap(await response.blob()));
}

/**
 * The shown part of the photograph, which zooms between 85% and 93% of it and moves about.
 * @param {number} ms Time since the start.
 * @param {number} width
 * @param {number} height
 */
function viewAt(ms, width, height) {
  const zoom = 0.89 - 0.04 * Math.cos(ms / 5200);
  const [w, h] = [width * zoom, height * zoom];
  return {
    x: (width - w) * (0.5 + 0.5 * Math.sin(ms / 3700)),
    y: (height - h) * (0.5 - 0.5 * Math.cos(ms / 6100)),
    width: w,
    height: h,
  };
}

/**
 * The left edge of the sign, which rests long enough to be read and then slides to its other place.
 * @param {number} ms Time since the start.
 */
function signAt(ms) {
  const turn = Math.floor(ms / SIGN_REST_MS);
  const [from, to] = turn % 2 ? SIGN_PLACES : [...SIGN_PLACES].reverse();
  const progress = turn === 0 ? 1 : Math.min(1, (ms % SIGN_REST_MS) / SIGN_MOVE_MS);
  return from + (to - from) * (0.5 - 0.5 * Math.cos(Math.PI * progress));
}
