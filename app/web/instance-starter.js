// Calls `start-server`, the function that starts the service's machine where that is switched off, and asks for its progress.

/**
 * @typedef {object} StartAnswer
 * @property {string} state `starting`, `running`, `stopping` (the machine starts once it has stopped), …
 * @property {number | null} etaS Seconds until the service can be used, estimated from earlier starts; null while unknown.
 * @property {string | null} url The service's address, when it differs from the expected one.
 * @property {string | null} message
 */

/** `start-server` refused. `status` is the HTTP status, 0 when no answer came. */
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

  /** Whether a later call may succeed. */
  get temporary() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

/** The start of a service that is switched off. The first call asks for the start, the next ones for its progress. */
export class InstanceStart {
  since = performance.now();
  /** Whether the machine was running at the last answer. */
  running = false;
  #startServer;
  #asked = false;

  /**
   * @param {{url: string, token?: string}} startServer
   * @param {string} url Expected address of the service.
   */
  constructor(startServer, url) {
    this.#startServer = startServer;
    this.url = url;
  }

  /**
   * @returns {Promise<StartAnswer>}
   * @throws {StartRefused} If the refusal is temporary, the next call asks for the start again.
   */
  async ask() {
    const { url, token } = this.#startServer;
    const answer = await callStartServer(url, { method: this.#asked ? "GET" : "POST", token });
    this.#asked = answer.state !== "stopped"; // the machine may be switched off again meanwhile
    this.running = answer.state === "running";
    if (answer.url) this.url = answer.url;
    return answer;
  }
}

/**
 * Makes one call: `POST` starts the machine, `GET` only asks for its state.
 * @param {string} url
 * @param {{method?: "POST" | "GET", token?: string, signal?: AbortSignal}} [options]
 * @returns {Promise<StartAnswer>}
 * @throws {StartRefused}
 */
export async function callStartServer(url, { method = "POST", token, signal } = {}) {
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
  if (!response.ok) throw new StartRefused(message ?? statusText(response.status), response.status);
  return {
    state: typeof answer.state === "string" ? answer.state : "starting",
    etaS: typeof answer.eta_s === "number" ? answer.eta_s : null,
    url: typeof answer.url === "string" && /^https?:/.test(answer.url) ? answer.url : null,
    message,
  };
}

/** @param {number} status Of HTTP. */
function statusText(status) {
  if (status === 401 || status === 403) return "start-server needs a valid start token.";
  if (status === 429) return "Too many starts were requested; the page tries again soon.";
  return `start-server answered ${status}.`;
}
