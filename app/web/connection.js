// One socket to the service's live entry point, the detection of a dead one, and the wait before the next.

/** @import { ServerMessage } from "./protocol.js" */

const OPEN_MS = 10_000;
const SILENCE_MS = 60_000; // the service pings every 15 s, so that a connection silent for this long is dead …
const QUIET_MS = 20_000; // … and with a frame in flight, an answer or a ping is due earlier

const ASK_MS = 5_000;

const FIRST_MS = 500;
const LONGEST_MS = 20_000;
const SHORTEST_MS = 100;

/**
 * How long to wait before the next connection: exponential back-off with full jitter
 * (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/), so that clients that lost the same service
 * do not all come back at the same moment.
 * @param {number} attempt From 0.
 * @param {number | null} [retryAfterS] The shortest wait that the service asks for, seconds.
 * @param {() => number} [random] Returns a number from 0 to 1.
 * @returns {number} Milliseconds.
 */
export function retryDelay(attempt, retryAfterS = null, random = Math.random) {
  const jittered = random() * Math.min(LONGEST_MS, FIRST_MS * 2 ** attempt);
  return Math.max(SHORTEST_MS, jittered) + (retryAfterS ?? 0) * 1000;
}

/**
 * Why the service refuses a socket, in the service's own words; empty where it does not refuse or gives no reason. A
 * browser hides the answer to a WebSocket handshake from the page, so this asks the same address by plain HTTP.
 * @param {string} url Address of the socket.
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
 * @property {(opened: boolean, why: string) => void} lost Called once, and no other listener after it. `opened` says whether
 *   the socket was ever open; `why` is a sentence, or empty.
 */

export class Connection {
  #socket;
  #lost;
  #opened = false;
  /** Whether a frame was sent and no message has arrived since. */
  #awaiting = false;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #deadline;

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
      this.#expect(SILENCE_MS, "The service has stopped sending.");
      open();
    };
    this.#socket.onmessage = (event) => {
      this.#awaiting = false;
      this.#expect(SILENCE_MS, "The service has stopped sending.");
      message(JSON.parse(event.data));
    };
    this.#socket.onclose = (event) => this.#end(event.reason);
  }

  /** @param {object} message */
  sendMessage(message) {
    if (this.#socket.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  /** @param {Uint8Array<ArrayBuffer>} frame */
  sendFrame(frame) {
    if (this.#socket.readyState !== WebSocket.OPEN) return;
    this.#socket.send(frame);
    if (this.#awaiting) return;
    this.#awaiting = true;
    this.#expect(QUIET_MS, "The service does not answer any more.");
  }

  /** Closes the socket without calling `lost`. */
  close() {
    clearTimeout(this.#deadline);
    this.#socket.onopen = this.#socket.onmessage = this.#socket.onclose = null;
    this.#socket.close();
  }

  /**
   * Ends the connection unless this is called again within the time.
   * @param {number} ms
   * @param {string} why The sentence for `lost`.
   */
  #expect(ms, why) {
    clearTimeout(this.#deadline);
    this.#deadline = setTimeout(() => this.#end(why), ms);
  }

  /** @param {string} why */
  #end(why) {
    this.close();
    this.#lost(this.#opened, why);
  }
}
