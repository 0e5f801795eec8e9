// How large, how good and how often frames are sent. Pure: the caller brings times and measurements.
//
// Additive increase, multiplicative decrease. The rate follows the service: when frames wait there for those
// before them, sending fewer makes every result fresher and none rarer. Quality and size follow the network and the
// encoder. Whatever a person sets by hand is left alone.

/**
 * @typedef {object} Wishes A number is by hand, null is automatic.
 * @property {number | null} [quality] JPEG, 0 to 1.
 * @property {number | null} [size] Longer side, pixels; by itself it is the area that is chosen.
 * @property {number | null} [rate] Frames a second.
 */
/**
 * @typedef {object} Answered
 * @property {number} now
 * @property {number} roundTripMs From sent to answered.
 * @property {number} serverMs How much of it the service had the frame.
 * @property {number} waitedMs How much of that it waited for the session's frames before it.
 * @property {number} encodeMs
 * @property {number} dropped Frames that the service dropped since its last answer.
 */

/** Longer sides of a picture of 4:3; others have as many pixels. */
export const SIZES = [320, 416, 512, 640];
const LEAST_SIDE = 160; // pixels: on fewer, nothing in a long strip is to be made out …
const LONGEST_SIDE = 4096; // … but this comes first: twice the pixels of 640 x 480
const QUALITY = { least: 0.5, most: 0.8 };
const RATE = { least: 1, most: 30 };
const SMOOTH = 0.3;
const WAITED = 0.3; // of the time that the service needs for a frame …
const WAITED_MS = 4; // … and a little, and a frame counts as having waited
const MANY = 0.5; // of the latest frames
const SLOW_NETWORK_MS = 120;
const FAST_NETWORK_MS = 60;
const SLOW_ENCODER_MS = 40;
const SIZE_HOLD_MS = 5000; // a new size interrupts motion and tracks: rarely, then

export class Pace {
  /** @type {Wishes} */
  #wishes = {};
  #quality = QUALITY.most;
  #size = SIZES.length - 1;
  #rate = RATE.most;
  #nextAt = 0;
  #waiting = 0;
  #networkMs = 0;
  #encodeMs = 0;
  #answeredAt = 0;
  #intervalMs = 0;
  #fellAt = 0;
  #qualityAt = 0;
  #sizeAt = 0;

  /** @param {Wishes} wishes */
  set(wishes) {
    this.#wishes = { ...this.#wishes, ...wishes };
  }

  get quality() {
    return this.#wishes.quality ?? this.#quality;
  }

  /** Longer side of the frames to send, pixels; of a picture of 4:3 where it is automatic. */
  get size() {
    return this.#wishes.size ?? SIZES[this.#size];
  }

  /**
   * What size a picture is sent in.
   * @param {number} width
   * @param {number} height
   */
  fit(width, height) {
    return this.#wishes.size ? fit(width, height, this.#wishes.size) : fitArea(width, height, this.size ** 2 * 0.75);
  }

  /** Most frames a second. */
  get rate() {
    return this.#wishes.rate ?? this.#rate;
  }

  /**
   * Whether the next frame may go out.
   * @param {number} now
   */
  due(now) {
    return now >= this.#nextAt - 4; // callbacks of a 30-a-second camera come a little early now and then
  }

  /** @param {number} now */
  sent(now) {
    const interval = 1000 / this.rate;
    this.#nextAt = Math.max(this.#nextAt, now - interval) + interval;
  }

  /** @param {Answered} answer */
  answered(answer) {
    this.#networkMs = blend(this.#networkMs, Math.max(0, answer.roundTripMs - answer.serverMs));
    this.#encodeMs = blend(this.#encodeMs, answer.encodeMs);
    this.#adaptRate(answer);
    this.#adaptPicture(answer.now);
    this.#answeredAt = answer.now;
  }

  /** A new session: nothing that was measured holds. */
  reset() {
    this.#rate = RATE.most;
    this.#networkMs = this.#waiting = this.#intervalMs = this.#answeredAt = this.#nextAt = this.#fellAt = 0;
  }

  /**
   * What counts is how many frames waited, not how long: one that was held up says nothing about the rate.
   * @param {Answered} answer
   */
  #adaptRate({ now, dropped, serverMs, waitedMs }) {
    const elapsed = this.#answeredAt ? Math.min(now - this.#answeredAt, 5000) : 0;
    if (elapsed) this.#intervalMs = this.#intervalMs ? blend(this.#intervalMs, elapsed, 0.1) : elapsed;
    const waited = dropped > 0 || waitedMs > WAITED * (serverMs - waitedMs) + WAITED_MS;
    this.#waiting = blend(this.#waiting, waited ? 1 : 0);
    if (this.#waiting > MANY) {
      if (now - this.#fellAt < 3 * this.#intervalMs) return; // what was sent before must show first
      this.#fellAt = now;
      this.#waiting = 0;
      const achieved = this.#intervalMs ? 1000 / this.#intervalMs : this.#rate;
      this.#rate = Math.max(RATE.least, 0.9 * Math.min(this.#rate, achieved));
    } else {
      this.#rate = Math.min(RATE.most, this.#rate + Math.max(1, 0.15 * this.#rate) * Math.min(1, elapsed / 1000));
    }
  }

  /** @param {number} now */
  #adaptPicture(now) {
    if (now - this.#qualityAt < 1000) return;
    this.#qualityAt = now;
    const slow = this.#networkMs > SLOW_NETWORK_MS;
    if (slow && this.#quality > QUALITY.least) this.#quality = Math.max(QUALITY.least, this.#quality * 0.9);
    else if (slow || this.#encodeMs > SLOW_ENCODER_MS) this.#resize(now, -1);
    else if (this.#networkMs < FAST_NETWORK_MS) {
      if (this.#quality < QUALITY.most) this.#quality = Math.min(QUALITY.most, this.#quality + 0.02);
      else if (this.#encodeMs < SLOW_ENCODER_MS / 2) this.#resize(now, 1);
    }
  }

  /**
   * @param {number} now
   * @param {number} step
   */
  #resize(now, step) {
    const size = Math.min(SIZES.length - 1, Math.max(0, this.#size + step));
    if (size === this.#size || now - this.#sizeAt < SIZE_HOLD_MS) return;
    this.#size = size;
    this.#sizeAt = now;
  }
}

/**
 * @param {number} before
 * @param {number} now
 * @param {number} [share] How much the latest counts.
 */
function blend(before, now, share = SMOOTH) {
  return before + share * (now - before);
}

/**
 * The size of a picture scaled down so that its longer side is at most `longest`.
 * @param {number} width
 * @param {number} height
 * @param {number} longest
 */
export function fit(width, height, longest) {
  const scale = Math.min(1, longest / Math.max(width, height, 1));
  return { width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale)) };
}

/**
 * The size of a picture scaled down to so many pixels. By its longer side alone a long strip would lose all of its
 * shorter one: that has `LEAST_SIDE` at least, as far as the longer one allows.
 * @param {number} width
 * @param {number} height
 * @param {number} pixels
 */
export function fitArea(width, height, pixels) {
  const [longer, shorter] = [Math.max(width, height, 1), Math.max(1, Math.min(width, height))];
  const scale = Math.max(Math.sqrt(pixels / (longer * shorter)), LEAST_SIDE / shorter);
  return fit(width, height, Math.min(LONGEST_SIDE, Math.round(longer * scale)));
}
