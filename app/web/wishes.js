// What was asked of the service, what of it is still to be answered, and what is in force. Pure.

/** @import { Settings, SettingsInForce } from "./protocol.js" */
/** @typedef {Settings & {mode?: string}} InitSettings */

export class Wishes {
  #wanted;
  /**
   * Changes that came after `init` and before `ready`: an `update` would cross what is still to be said of `init`.
   * @type {Settings | null}
   */
  #late = null;
  #unanswered = 0;
  /** @type {SettingsInForce | null} */
  #inForce = null;

  /** @param {InitSettings} [wanted] */
  constructor(wanted = {}) {
    this.#wanted = wanted;
  }

  /** Whether every change was answered. */
  get settled() {
    return !this.#unanswered;
  }

  /**
   * A connection begins.
   * @returns {InitSettings} For its `init`.
   */
  begin() {
    this.#late = null;
    this.#unanswered = 0;
    return this.#wanted;
  }

  /**
   * @param {Settings} patch
   * @param {boolean} live Whether an `update` may be said.
   * @returns {Settings | null} What to say now.
   */
  change(patch, live) {
    this.#wanted = merged(this.#wanted, patch);
    if (!live) this.#late = merged(this.#late ?? {}, patch);
    return live ? this.#say(patch) : null;
  }

  /**
   * @param {SettingsInForce} settings
   * @returns {Settings | null} What to say now.
   */
  ready(settings) {
    this.#inForce = settings;
    const late = this.#late;
    this.#late = null;
    return late && this.#say(late);
  }

  /**
   * An `update` was answered.
   * @param {SettingsInForce | null} settings Null: it was refused, and what was in force stays so.
   * @returns {SettingsInForce | null} What is in force; null while later changes have no answer, which it does not have.
   */
  answered(settings) {
    this.#inForce = settings ?? this.#inForce;
    this.#unanswered = Math.max(0, this.#unanswered - 1);
    return this.settled ? this.#inForce : null;
  }

  /**
   * Goes on without what was refused of `init`.
   * @param {string | null} field As the `error` names it.
   * @returns {boolean} Whether there was such a wish: without one, a new `init` would be refused like the last.
   */
  giveUp(field) {
    const others = field === null ? null : without(this.#wanted, field);
    if (others) this.#wanted = others;
    return others !== null;
  }

  /** @param {Settings} patch */
  #say(patch) {
    this.#unanswered += 1;
    return patch;
  }
}

/**
 * @template {Settings} T
 * @param {T} settings
 * @param {Settings} patch
 * @returns {T}
 */
function merged(settings, patch) {
  return { ...settings, ...patch, stages: { ...settings.stages, ...patch.stages } };
}

/**
 * @template {object} T
 * @param {T} settings
 * @param {string} field `confidence`, `classes.0` (then all classes), `stages.ocr` (then that stage).
 * @returns {T | null} Null when there is none of this name.
 */
function without(settings, field) {
  const [name, inner] = field.split(".");
  const { [name]: refused, ...others } = /** @type {Record<string, unknown>} */ (settings);
  if (refused === undefined) return null;
  if (name !== "stages" || !inner) return /** @type {T} */ (others);
  const stages = without(/** @type {object} */ (refused), inner);
  return stages && /** @type {T} */ ({ ...others, stages });
}
