// How long to wait before connecting again. Pure but for the dice, which may be handed in.

const FIRST_MS = 500;
const LONGEST_MS = 20_000;
const SHORTEST_MS = 100;

/**
 * Exponential back-off with full jitter (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/):
 * clients that lost the same service do not come back in step.
 * @param {number} attempt From 0.
 * @param {number | null} [retryAfterS] What the service asked for: never sooner.
 * @param {() => number} [random] 0 to 1.
 * @returns {number} Milliseconds.
 */
export function retryDelay(attempt, retryAfterS = null, random = Math.random) {
  const jittered = random() * Math.min(LONGEST_MS, FIRST_MS * 2 ** attempt);
  return Math.max(SHORTEST_MS, jittered) + (retryAfterS ?? 0) * 1000;
}
