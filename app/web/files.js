// What a file is, by its type and by how it begins. Pure but for reading its beginning.

/** @typedef {"film" | "picture"} FileKind A recording of sound is a film here: what is wrong with it shows as it plays. */

const BEGINNING = 512;
const PICTURES = ["avif", "avis", "heic", "heix", "heif", "mif1", "msf1"]; // brands of ISO media files
const BOXES = ["moov", "mdat", "wide", "free", "skip", "pnot"]; // how QuickTime's files begin that name no brand
const STARTS = /** @type {[FileKind, number[]][]} */ ([
  ["picture", [0xff, 0xd8, 0xff]], // JPEG
  ["picture", [0x89, 0x50, 0x4e, 0x47]], // PNG
  ["picture", [0x47, 0x49, 0x46, 0x38]], // GIF
  ["picture", [0x49, 0x49, 0x2a, 0x00]], // TIFF
  ["picture", [0x4d, 0x4d, 0x00, 0x2a]],
  ["film", [0x1a, 0x45, 0xdf, 0xa3]], // Matroska, WebM
  ["film", [0x4f, 0x67, 0x67, 0x53]], // Ogg
  ["film", [0x00, 0x00, 0x01, 0xba]], // MPEG program stream
  ["film", [0x00, 0x00, 0x01, 0xb3]], // MPEG video
  ["film", [0x46, 0x4c, 0x56, 0x01]], // FLV
  ["film", [0x30, 0x26, 0xb2, 0x75]], // ASF, WMV
  ["film", [...new TextEncoder().encode("YUV4MPEG2")]],
  ["film", [...new TextEncoder().encode("fLaC")]],
  ["film", [...new TextEncoder().encode("ID3")]], // MP3
]);

/** It is neither a film nor a picture, or has nothing in it. */
export class NoFilmError extends Error {
  name = "NoFilmError";
}

/** It is a picture by its type, and the browser cannot decode it. */
export class BrokenPictureError extends Error {
  name = "BrokenPictureError";
}

/**
 * What a file is taken for: what its type says, else how it begins.
 * @param {Blob & {name: string}} file
 * @returns {Promise<FileKind>}
 * @throws {NoFilmError}
 */
export async function kindOf(file) {
  const [type] = file.type.split("/");
  /** @type {Uint8Array} */
  let begins;
  try {
    begins = new Uint8Array(await file.slice(0, BEGINNING).arrayBuffer());
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    throw new NoFilmError(`“${file.name}” cannot be read; a folder cannot be opened. (${why})`);
  }
  if (!begins.length) throw new NoFilmError(`“${file.name}” is empty.`);
  const found = kindFrom(begins);
  if (found) return found;
  if (type === "image") return "picture";
  if (type === "video" || type === "audio") return "film";
  throw new NoFilmError(`“${file.name}” is neither a film nor a picture.`);
}

/**
 * @param {Uint8Array} bytes The first ones of a file.
 * @returns {FileKind | null} Null: none that is known.
 */
export function kindFrom(bytes) {
  for (const [kind, start] of STARTS) if (start.every((byte, at) => bytes[at] === byte)) return kind;
  const word = (/** @type {number} */ at) => String.fromCharCode(...bytes.subarray(at, at + 4));
  if (word(4) === "ftyp") return PICTURES.includes(word(8)) ? "picture" : "film";
  if (BOXES.includes(word(4))) return "film";
  if (word(0) === "RIFF") return word(8) === "WEBP" ? "picture" : "film"; // AVI, WAVE
  if (word(0).startsWith("BM") && bytes[6] === 0 && bytes[7] === 0) return "picture";
  if (bytes[0] === 0xff && (bytes[1] & 0xe6) === 0xe2) return "film"; // MP3 without a tag
  return bytes[0] === 0x47 && bytes[188] === 0x47 && bytes[376] === 0x47 ? "film" : null; // MPEG transport stream
}
