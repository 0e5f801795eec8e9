// Version 1 of the live protocol: the types of its messages, and the encoding of frames as bytes. No I/O.

/** @typedef {{x1: number, y1: number, x2: number, y2: number}} Box In pixels of the frame as sent. */
/**
 * @typedef {object} Detection
 * @property {number} class_id
 * @property {string} class_name
 * @property {number} confidence
 * @property {Box} box
 * @property {number | null} track_id
 */
/** @typedef {{name: string, x: number, y: number, confidence: number}} Keypoint */
/** @typedef {{confidence: number, box: Box, keypoints: Keypoint[], track_id: number | null}} Pose */
/** @typedef {{text: string, confidence: number, polygon: [number, number][]}} Text */
/** @typedef {{columns: number, rows: number, scale: number, data: string}} MotionGrid */
/**
 * The camera's motion from the last frame to this one: a shift in pixels, and a clockwise rotation and a zoom about the
 * centre of the frame. Older services send neither rotation nor zoom.
 * @typedef {{dx: number, dy: number, rotation_deg?: number, zoom?: number}} CameraMotion
 */
/**
 * @typedef {object} Motion
 * @property {number} score Mean motion without the camera's: pixels per frame, divided by the diagonal.
 * @property {number | null} direction_deg 0 right, 90 down.
 * @property {number} moving_fraction
 * @property {CameraMotion} camera
 * @property {MotionGrid | null} grid
 */
/** @typedef {{status: string, reason: string | null, age_ms: number | null}} Stage */
/** @typedef {"detect" | "pose" | "ocr" | "motion" | "track" | "summary"} StageName */
/** @typedef {Partial<Record<StageName, boolean>>} Stages */
/**
 * @typedef {object} Settings What `init` and `update` may ask for. A setting that is left out stays as it is.
 * @property {Stages} [stages]
 * @property {number} [confidence]
 * @property {number} [iou]
 * @property {(string | number)[]} [classes] Names or ids; an empty list keeps all.
 * @property {boolean} [motion_grid]
 * @property {number} [max_age_ms]
 * @property {{prompt: string}} [summary]
 */
/**
 * @typedef {object} SettingsInForce
 * @property {string} mode
 * @property {Record<StageName, boolean>} stages
 * @property {number} confidence
 * @property {number} iou
 * @property {number[] | null} classes
 * @property {boolean} motion_grid
 * @property {number} max_age_ms
 * @property {string | null} [summary_prompt]
 */
/**
 * @typedef {object} Models
 * @property {{name: string, classes: string[]} | null} detect
 * @property {{name: string, keypoints: string[], skeleton: [number, number][]} | null} pose
 * @property {string | null} ocr
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
 * @property {string[]} [prompts] The names that `summary.prompt` accepts; empty where the service makes no summaries.
 */
/**
 * @typedef {object} Result
 * @property {"result"} type
 * @property {string} session_id
 * @property {number} frame_id
 * @property {number} seq
 * @property {number} captured_at_ms
 * @property {{width: number, height: number}} image
 * @property {Detection[]} objects
 * @property {Pose[]} poses
 * @property {Text[]} texts
 * @property {Motion | null} motion
 * @property {Record<string, Stage>} stages
 * @property {Record<string, number>} timings_ms
 * @property {number} age_ms
 * @property {{since_last: number, total: number}} dropped
 */
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
