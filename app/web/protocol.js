// Version 1 of the live protocol: the types of its messages, and the encoding of frames as bytes. No I/O.

/** @typedef {{x1: number, y1: number, x2: number, y2: number}} Box In pixels of the frame as sent. */
/** @typedef {{columns: number, rows: number, scale: number, data: string}} Field Vectors in a grid, as `field` shapes show. */
/**
 * The camera's motion from the last frame to this one: a shift in pixels, and a clockwise rotation and a zoom about the
 * centre of the frame. Older services send neither rotation nor zoom.
 * @typedef {{dx: number, dy: number, rotation_deg?: number, zoom?: number}} CameraMove
 */
/** @typedef {{status: string, reason: string | null, age_ms: number | null}} Stage */
/** @typedef {Record<string, boolean>} Stages Which stages run, by name; `summary` is one of the names. */
/** @typedef {"box" | "polygon" | "polyline" | "mask" | "points" | "label" | "arrow" | "field"} ShapeKind */
/**
 * @typedef {object} Shape How each entry of a part is drawn.
 * @property {ShapeKind} kind
 * @property {string} [at] Path within the entry to the geometry, with dots; empty: the entry itself.
 * @property {string} [label] Text with the entry's fields in braces; empty: no text.
 * @property {string} [colour] `class`: by the entry's `class_id`; `#rrggbb`; or `{rgb}`: the entry's field of that name.
 * @property {number} [least] Of points: the least confidence of one that is drawn.
 * @property {string} [lines] Of points: the field of the stage's model that holds the pairs of points to connect.
 * @property {string} [camera] Of arrow and field: path to the motion of the whole image; a field's vectors contain it.
 */
/**
 * @typedef {object} Figure What a part says in words and numbers, beside the image.
 * @property {"figures" | "status" | "sentence"} place
 * @property {string} text With fields in braces, perhaps with a format: `{moving_fraction:percent}`.
 * @property {string} [where] The field that must be at least `least`; empty: the figure is always shown.
 * @property {number} [least]
 */
/**
 * @typedef {object} StageDescription A stage that a client may switch, and how to show its part of a result.
 * @property {string} name Its key in `stages`.
 * @property {string} title
 * @property {string} description
 * @property {string | null} field Its field of a result; null where it adds to the fields of others.
 * @property {boolean} [late] Whether entries may be of an earlier frame; the stage's status then says how old they are.
 * @property {Shape[]} shapes
 * @property {Figure[]} [figures]
 */
/**
 * @typedef {object} Settings What `init` and `update` may ask for. A setting that is left out stays as it is.
 * @property {Stages} [stages]
 * @property {number} [confidence]
 * @property {number} [iou]
 * @property {(string | number)[]} [classes] Names or ids; an empty list keeps all.
 * @property {boolean} [motion_grid]
 * @property {boolean} [mask_rle] Masks come as run lengths, too.
 * @property {number} [max_age_ms]
 * @property {{prompt: string}} [summary]
 */
/**
 * @typedef {object} SettingsInForce
 * @property {string} mode
 * @property {Stages} stages
 * @property {number} confidence
 * @property {number} iou
 * @property {number[] | null} classes
 * @property {boolean} motion_grid
 * @property {boolean} mask_rle
 * @property {number} max_age_ms
 * @property {string | null} [summary_prompt]
 */
/**
 * @typedef {Record<string, string | ({name: string} & Record<string, any>) | null | undefined>} Models The loaded models by stage;
 *   null for those that are not. One with `classes` has their names by id.
 */
/** @typedef {{type: "queued", position: number, ahead: number, eta_s: number | null}} Queued */
/**
 * @typedef {object} Ready
 * @property {"ready"} type
 * @property {string} session_id
 * @property {Models} models
 * @property {SettingsInForce} settings
 * @property {Record<string, number>} limits
 * @property {number} credits
 * @property {StageDescription[]} [stages] The stages that may run, in the order of a result's parts.
 * @property {string[]} [prompts] The names that `summary.prompt` accepts; empty where the service makes no summaries.
 */
/**
 * @typedef {object} Answer What every result has.
 * @property {"result"} type
 * @property {string} session_id
 * @property {number} frame_id
 * @property {number} seq
 * @property {number} captured_at_ms
 * @property {{width: number, height: number}} image
 * @property {Record<string, Stage>} stages
 * @property {Record<string, number>} timings_ms
 * @property {number} age_ms
 * @property {{since_last: number, total: number}} dropped
 */
/** @typedef {Answer & Record<string, any>} Result With the parts of the stages, by field: `ready.stages` describes them. */
/**
 * @typedef {object} Summary
 * @property {"summary"} type
 * @property {"llm" | "digest"} source
 * @property {string} title
 * @property {string} scene
 * @property {string[]} activities
 * @property {string[]} visible_text
 * @property {string[]} concerns
 * @property {number} confidence
 * @property {number} first_frame_id
 * @property {number} last_frame_id
 * @property {number} generated_at_ms
 */
/** @typedef {{type: "notice", code: string, message: string}} Notice */
/**
 * @typedef {object} Refusal The service's `error`: it refused one message or one frame.
 * @property {"error"} type
 * @property {string} code
 * @property {string} message
 * @property {string | null} field
 * @property {number | null} seq
 * @property {boolean} fatal
 */
/**
 * @typedef {object} Report Totals of a session: received = processed + dropped + failed.
 * @property {number} received
 * @property {number} processed
 * @property {Record<string, number>} dropped
 * @property {number} failed
 * @property {number} bytes
 * @property {number} duration_s
 * @property {Record<string, {p50_ms: number, p95_ms: number}>} stages
 * @property {Summary | null} [summary] Covers the time since the last summary.
 */
/**
 * @typedef {object} Bye
 * @property {"bye"} type
 * @property {string} reason
 * @property {Report} report
 * @property {string | null} message
 * @property {number | null} retry_after_s
 */
/** @typedef {{type: "settings", settings: SettingsInForce}} SettingsMessage */
/** @typedef {{type: "ping", t: number}} Ping */
/** @typedef {Queued | Ready | Result | Summary | SettingsMessage | Notice | Refusal | Ping | Bye} ServerMessage */

export const PROTOCOL_VERSION = 1;
export const HEADER_BYTES = 16;
const MAGIC = [0x53, 0x4c, 0x46, 0x31]; // SLF1

/**
 * Encodes a frame as one binary message: `SLF1`, `seq` (uint32), `captured_at_ms` (float64), both big-endian, then the JPEG.
 * @param {Uint8Array} jpeg
 * @param {number} seq
 * @param {number} capturedAtMs Milliseconds since the epoch.
 * @returns {Uint8Array<ArrayBuffer>}
 */
export function packFrame(jpeg, seq, capturedAtMs) {
  const message = new Uint8Array(HEADER_BYTES + jpeg.byteLength);
  const view = new DataView(message.buffer);
  message.set(MAGIC);
  view.setUint32(4, seq);
  view.setFloat64(8, capturedAtMs);
  message.set(jpeg, HEADER_BYTES);
  return message;
}

/**
 * The address of the live socket.
 * @param {string} url Address of the service: `https://host`, with or without a path, with or without `/ws/inference`.
 */
export function socketUrl(url) {
  const address = new URL(url);
  address.protocol = address.protocol.replace(/^http/, "ws");
  const path = address.pathname.replace(/\/$/, "");
  if (!path.endsWith("/ws/inference")) address.pathname = `${path}/ws/inference`;
  return address.href;
}
