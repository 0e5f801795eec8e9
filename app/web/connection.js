// One socket to the live door, which notices by itself when the other end is gone.

/** @import { ServerMessage } from "./protocol.js" */

const OPEN_MS = 10_000;
const SILENCE_MS = 60_000; // the service pings every 15 s: a connection that is silent for so long is dead
const QUIET_MS = 20_000; // … and with a frame on its way it need not take that long: an answer or a ping was due

const ASK_MS = 5_000;

/**
 * Why the service refuses a socket, in its own words; empty where it does not, or does not say. A browser keeps from a
 * page what a handshake was answered; plain HTTP to the same address tells it.
 * @param {string} url Of the socket.
 */
export async function refusal(url) {
  try {
    const asked = { method: "POST", credentials: "omit", cache: "no-store", signal: AbortSignal.timeout(ASK_MS) };
    const response = await fetch(url.replace(/^ws/, "http"), /** @type {RequestInit} */ (asked));
    const message = response.ok ? null : (await response.json())?.error?.message;
    return typeof message === "string" ? message : "";
  } catch {
    return "";
  }
}

/**
 * @typedef {object} Listeners
 * @property {() => void} open
 * @property {(message: ServerMessage) => void} message
 * @property {(opened: boolean, why: string) => void} lost Once, and nothing after it. `opened`: whether it ever was.
 */

export class Connection {
  #socket;
  #lost;
  #opened = false;
  /** A frame went out, and nothing came since. */
  #awaiting = false;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #clock;

  /**
   * @param {string} url
   * @param {Listeners} listeners
   */
  constructor(url, { open, message, lost }) {
    this.#lost = lost;
    this.#socket = new WebSocket(url);
    this.#expect(OPEN_MS, "The service does not answer.");
    this.#socket.onopen = () => {
      this.#opened = true;
      this.#expect(SILENCE_MS, "The service has fallen silent.");
      open();
    };
    this.#socket.onmessage = (event) => {
      this.#awaiting = false;
      this.#expect(SILENCE_MS, "The service has fallen silent.");
      message(JSON.parse(event.data));
    };
    this.#socket.onclose = (event) => this.#end(event.reason);
  }

  /** @param {object} message */
  say(message) {
    if (this.#socket.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  /** @param {Uint8Array<ArrayBuffer>} frame */
  send(frame) {
    if (this.#socket.readyState !== WebSocket.OPEN) return;
    this.#socket.send(frame);
    if (this.#awaiting) return;
    this.#awaiting = true;
    this.#expect(QUIET_MS, "The service does not answer any more.");
  }

  /** Lets go of it without a word: `lost` is not called. */
  close() {
    clearTimeout(this.#clock);
    this.#socket.onopen = this.#socket.onmessage = this.#socket.onclose = null;
    this.#socket.close();
  }

  /**
   * Something must come within this time.
   * @param {number} ms
   * @param {string} otherwise
   */
  #expect(ms, otherwise) {
    clearTimeout(this.#clock);
    this.#clock = setTimeout(() => this.#end(otherwise), ms);
  }

  /** @param {string} why */
  #end(why) {
    this.close();
    this.#lost(this.#opened, why);
  }
}
