// What `client.js` tells and is told, as types alone: nothing here runs.

/** @import { Notice, Queued, Ready, Refusal, Report, Result, Settings, SettingsInForce, Summary } from "./protocol.js" */
/** @import { SentFrame } from "./flight.js" */
/** @import { StartAnswer } from "./starter.js" */

/**
 * @typedef {"idle" | "starting" | "connecting" | "queued" | "live" | "stalled" | "waiting" | "stopping" | "ended"} State
 *   `stalled`: live, and a frame that is on its way was not answered for three seconds. `stopping`: `stop` was said and
 *   `bye` has not come. `connect` may be called in every state.
 */
/**
 * @typedef {object} Events What each event carries in `detail`; times are `performance.now()`'s.
 * @property {{state: State, previous: State, reason: string | null, why: string | null, retryAt: number | null,
 *   silentSince: number | null}} state `reason` and `why`, the same in words, come with `waiting` and `ended`. `retryAt`
 *   comes with `waiting`: when it connects again; null means not before `resume` or `retryNow`. `silentSince` comes with
 *   `stalled`: the last answer, or the frame that has none.
 * @property {StartAnswer & {since: number}} starting
 * @property {Queued} queued
 * @property {Ready} ready
 * @property {{free: number}} wantsFrame
 * @property {{result: Result, frame: SentFrame | null, receivedAt: number, roundTripMs: number | null,
 *   ageMs: number | null}} result `ageMs`: from capture to here, on this machine's clock alone.
 * @property {SettingsInForce} settings What is in force, once every `update` was answered: answers to earlier ones say
 *   nothing about what was asked for since.
 * @property {Summary} summary
 * @property {Notice} notice
 * @property {Refusal} refused
 * @property {{reason: string, text: string, report: Report, again: boolean}} bye
 */
/**
 * @typedef {object} ConnectOptions
 * @property {string} url Of the service, `https://host`.
 * @property {string} [token] One of the service's AUTH_TOKENS, where it asks for one.
 * @property {Settings} [settings]
 * @property {"realtime" | "lossless"} [mode]
 * @property {{url: string, token?: string}} [startServer] What to call when the service is switched off.
 */

export {};
