// The encoder's worker: draws each frame at the requested size and posts it back as JPEG.

/** @import { EncodeRequest } from "./sender.js" */

let canvas = new OffscreenCanvas(1, 1);
let context = canvas.getContext("2d", { alpha: false });

self.onmessage = async (/** @type {MessageEvent<EncodeRequest>} */ { data }) => {
  const { id, frame, width, height, quality } = data;
  try {
    if (canvas.width !== width || canvas.height !== height) {
      canvas = new OffscreenCanvas(width, height);
      context = canvas.getContext("2d", { alpha: false });
    }
    context?.drawImage(frame, 0, 0, width, height);
    frame.close();
    const blob = await canvas.convertToBlob({ type: "image/jpeg", quality });
    const bytes = await blob.arrayBuffer();
    self.postMessage({ id, bytes }, { transfer: [bytes] });
  } catch (error) {
    frame.close();
    self.postMessage({ id, problem: String(error) });
  }
};
