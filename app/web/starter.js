// Asks `start-server` to start a service that is switched off, and how far it is.

/**
 * @typedef {object} StartAnswer
 * @property {string} state `starting`, `running`, `stopping` (it starts once it has stopped), …
 * @property {number | null} etaS Seconds until it can be used, from earlier starts; null while unknown.
 * @property {string | null} url Where it will be, when not where it was expected.
 * @property {string | null} message
 */

/** `start-server` said no; `status` is HTTP's, 0 when there was no answer at all. */
export class StartRefused extends Error {
  /**
   * @param {string} message
   * @param {number} status
   */
  constructor(message, status) {
    super(message);
    this.name = "StartRefused";
    this.status = status;
  }

  /** Whether asking again may help. */
  get passing() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

/** The start of a service that is switched off: it is asked for once, then how far it is. */
export class Start {
  since = performance.now();
  /** Whether the machine was up when it was last asked. */
  running = false;
  #starter;
  #asked = false;

  /**
   * @param {{url: string, token?: string}} starter
   * @param {string} url Where the service is expected.
   */
  constructor(starter, url) {
    this.#starter = starter;
    this.url = url;
  }

  /**
   * @returns {Promise<StartAnswer>}
   * @throws {StartRefused} A start that was turned away for now is asked for again by the next call.
   */
  async ask() {
    const { url, token } = this.#starter;
    const answer = await askStarter(url, { method: this.#asked ? "GET" : "POST", token });
    this.#asked = answer.state !== "stopped"; // it may go off again while one waits
    this.running = answer.state === "running";
    if (answer.url) this.url = answer.url;
    return answer;
  }
}

/**
 * One call: `POST` starts, `GET` only asks.
 * @param {string} url
 * @param {{method?: "POST" | "GET", token?: string, signal?: AbortSignal}} [options]
 * @returns {Promise<StartAnswer>}
 * @throws {StartRefused}
 */
export async function askStarter(url, { method = "POST", token, signal } = {}) {
  /** @type {Record<string, string>} */
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let response;
  try {
    response = await fetch(url, { method, headers, signal, cache: "no-store", credentials: "omit" });
  } catch (error) {
    throw new StartRefused(`start-server did not answer: ${error instanceof Error ? error.message : error}`, 0);
  }
  /** @type {Record<string, unknown>} */
  const answer = await response.json().catch(() => ({}));
  const message = typeof answer.message === "string" ? answer.message : null;
  if (!response.ok) throw new StartRefused(message ?? words(response.status), response.status);
  return {
    state: typeof answer.state === "string" ? answer.state : "starting",
    etaS: typeof answer.eta_s === "number" ? answer.eta_s : null,
    url: typeof answer.url === "string" && /^https?:/.test(answer.url) ? answer.url : null,
    message,
  };
}

/** @param {number} status */
function words(status) {
  if (status === 401 || status === 403) return "start-server wants a valid start token.";
  if (status === 429) return "Too many starts were asked for; trying again soon.";
  return `start-server answered ${status}.`;
}
