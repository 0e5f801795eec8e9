// Browsers record WebM that says nowhere how long it is: players show no length then. Pure.

const SEGMENT = 0x18538067;
const INFO = 0x1549a966;
const DURATION = 0x4489;
const SCALE = 0x2ad7b1; // nanoseconds a unit of time …
const USUAL_SCALE = 1_000_000; // … where it is not said
const EBML = 0x1a45dfa3;

/**
 * The beginning of a recording with its duration in it.
 * @param {Uint8Array} bytes As many of the first ones as hold its segment's information; a few hundred do.
 * @param {number} ms
 * @returns {Uint8Array<ArrayBuffer> | null} Null where it says how long it is, or is no such recording.
 */
export function withDuration(bytes, ms) {
  const header = element(bytes, 0);
  if (header?.id !== EBML || header.size === null) return null;
  const segment = element(bytes, header.data + header.size);
  // A segment of known size would have to be told that it grows: recorders do not know theirs.
  if (segment?.id !== SEGMENT || segment.size !== null) return null;
  const info = find(bytes, segment.data, bytes.length, INFO);
  if (!info || info.size === null || info.data + info.size > bytes.length) return null;
  const end = info.data + info.size;
  if (find(bytes, info.data, end, DURATION)) return null;
  const scale = find(bytes, info.data, end, SCALE);
  const unit = scale?.size ? number(bytes.subarray(scale.data, scale.data + scale.size)) : USUAL_SCALE;
  const added = new Uint8Array(11);
  added.set([0x44, 0x89, 0x88]);
  new DataView(added.buffer).setFloat64(3, (ms * 1e6) / unit);
  const size = new Uint8Array(8);
  new DataView(size.buffer).setBigUint64(0, BigInt(info.size + added.length) | (1n << 56n));
  const parts = [bytes.subarray(0, info.at + 4), size, bytes.subarray(info.data, end), added, bytes.subarray(end)];
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

/**
 * The first element of this kind among those side by side.
 * @param {Uint8Array} bytes
 * @param {number} from
 * @param {number} to
 * @param {number} id
 */
function find(bytes, from, to, id) {
  for (let at = from; at < to; ) {
    const found = element(bytes, at);
    if (!found || found.id === id) return found;
    if (found.size === null) return null;
    at = found.data + found.size;
  }
  return null;
}

/**
 * The element that begins here (RFC 8794).
 * @param {Uint8Array} bytes
 * @param {number} at
 * @returns {{id: number, at: number, data: number, size: number | null} | null} `size` null: it is not known.
 */
function element(bytes, at) {
  const idLength = length(bytes[at]);
  const sizeLength = length(bytes[at + idLength]);
  const data = at + idLength + sizeLength;
  if (!idLength || !sizeLength || data > bytes.length) return null;
  const [first, ...rest] = bytes.subarray(at + idLength, data);
  const most = 0xff >> sizeLength; // the bits beside the mark of the length
  const unknown = (first & most) === most && rest.every((byte) => byte === 0xff);
  const size = unknown ? null : number(Uint8Array.of(first & most, ...rest));
  return { id: number(bytes.subarray(at, at + idLength)), at, data, size };
}

/** @param {number} first Byte of a number of variable length; 0 where it begins none. */
function length(first) {
  return first ? Math.clz32(first) - 23 : 0;
}

/** @param {Uint8Array} bytes Big-endian. */
function number(bytes) {
  return bytes.reduce((sum, byte) => sum * 256 + byte, 0);
}
