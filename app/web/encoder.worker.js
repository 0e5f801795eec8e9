// Makes JPEGs off the main thread: a picture comes in and is drawn at the wanted size, its bytes go back.

/** @import { EncodeRequest } from "./encoder.js" */

let canvas = new OffscreenCanvas(1, 1);
let pen = canvas.getContext("2d", { alpha: false });

self.onmessage = async (/** @type {MessageEvent<EncodeRequest>} */ { data }) => {
  const { id, picture, width, height, quality } = data;
  try {
    if (canvas.width !== width || canvas.height !== height) {
      canvas = new OffscreenCanvas(width, height);
      pen = canvas.getContext("2d", { alpha: false });
    }
    pen?.drawImage(picture, 0, 0, width, height);
    picture.close();
    const blob = await canvas.convertToBlob({ type: "image/jpeg", quality });
    const bytes = await blob.arrayBuffer();
    self.postMessage({ id, bytes }, { transfer: [bytes] });
  } catch (error) {
    picture.close();
    self.postMessage({ id, problem: String(error) });
  }
};
