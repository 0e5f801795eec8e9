// How the camera moved: what was seen a while ago is carried to where it is now. Pure.
//
// The camera's motion from one frame to the next is a similarity: a shift, a rotation and a zoom about the picture's
// middle. As complex numbers, with widths of the picture as the unit: a place `p` (from the middle) goes to
// `turn * p + shift`. Services that measure shifts alone say no `rotation_deg` and no `zoom`.

import { aheadOf } from "./glide.js";

/** @import { CameraMotion } from "./protocol.js" */
/** @typedef {{x: number, y: number}} Point */
/** @typedef {{turn: Point, shift: Point}} Similarity */

const REMEMBERED_MS = 60_000; // a text that was read longer ago than this is not known to be anywhere
const BASE_MS = 300; // velocity comes from this much of the past
const STILL = { turn: { x: 1, y: 0 }, shift: { x: 0, y: 0 } };

/**
 * @param {CameraMotion} camera Pixels of a frame.
 * @param {number} width Of that frame.
 * @returns {Similarity}
 */
export function similarity({ dx, dy, rotation_deg = 0, zoom = 1 }, width) {
  const angle = ((rotation_deg ?? 0) * Math.PI) / 180;
  const scale = zoom ?? 1;
  return {
    turn: { x: scale * Math.cos(angle), y: scale * Math.sin(angle) },
    shift: { x: dx / width, y: dy / width },
  };
}

/**
 * Where a place goes.
 * @param {Similarity} by
 * @param {Point} from From the picture's middle, in widths.
 * @returns {Point}
 */
export function moved({ turn, shift }, from) {
  const { x, y } = times(turn, from);
  return { x: x + shift.x, y: y + shift.y };
}

/** The way of the camera over the latest results. */
export class Steadying {
  /**
   * `since`: when the frame before was taken; `told`: when the result came.
   * @type {{at: number, since: number, told: number, step: Similarity | null}[]}
   */
  #steps = [];

  /**
   * @param {Similarity | null} step From the frame of the last result to this one's; null where nobody knows.
   * @param {number} capturedAt
   * @param {number} now
   */
  observe(step, capturedAt, now) {
    const last = this.#steps.at(-1)?.at ?? capturedAt;
    if (this.#steps.length && capturedAt <= last) return;
    this.#steps.push({ at: capturedAt, since: last, told: now, step });
    while (capturedAt - this.#steps[0].at > REMEMBERED_MS) this.#steps.shift();
  }

  /**
   * The whole way from an earlier frame to the latest result's. Ages are measured at the service, from answer to answer:
   * what was told about then was of that frame.
   * @param {number} ageMs
   * @returns {{way: Similarity, takenAt: number}}
   */
  since(ageMs) {
    const last = this.#steps.at(-1);
    if (!last) return { way: STILL, takenAt: 0 };
    let from = this.#steps.length - 1;
    const off = (/** @type {number} */ index) => Math.abs(last.told - ageMs - this.#steps[index].told);
    while (from > 0 && off(from - 1) < off(from)) from -= 1;
    const way = this.#steps.slice(from + 1).reduce((sum, { step }) => (step ? after(sum, step) : sum), STILL);
    return { way, takenAt: this.#steps[from].at };
  }

  /**
   * The way that the camera is taken to have gone since the latest result.
   * @param {number} now
   * @returns {Similarity}
   */
  ahead(now) {
    const last = this.#steps.at(-1);
    if (!last?.step) return STILL;
    const recent = this.#steps.filter(({ since, step }) => step && last.at - since <= BASE_MS);
    if (!recent.length) recent.push(last);
    const took = recent.reduce((sum, { at, since }) => sum + at - since, 0);
    if (took <= 0) return STILL;
    const way = recent.reduce((sum, { step }) => (step ? after(sum, step) : sum), STILL);
    return share(way, aheadOf(last.at, now) / took);
  }

  clear() {
    this.#steps = [];
  }
}

/**
 * @param {Similarity} first
 * @param {Similarity} second
 * @returns {Similarity} One after the other.
 */
function after(first, second) {
  return { turn: times(second.turn, first.turn), shift: moved(second, first.shift) };
}

/**
 * A part of a way, or more of it.
 * @param {Similarity} way
 * @param {number} part
 * @returns {Similarity}
 */
function share({ turn, shift }, part) {
  const [scale, angle] = [Math.hypot(turn.x, turn.y) ** part, Math.atan2(turn.y, turn.x) * part];
  return {
    turn: { x: scale * Math.cos(angle), y: scale * Math.sin(angle) },
    shift: { x: shift.x * part, y: shift.y * part },
  };
}

/**
 * @param {Point} a
 * @param {Point} b
 * @returns {Point} The product of two complex numbers.
 */
function times(a, b) {
  return { x: a.x * b.x - a.y * b.y, y: a.x * b.y + a.y * b.x };
}
