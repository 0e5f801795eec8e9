// Lines that show on any picture.

/** @import { Pen } from "./paint.js" */

export const EDGE = "rgb(0 0 0 / 0.6)";

/**
 * @param {Pen} pen
 * @param {number} width
 * @param {string} colour
 * @param {number} unit
 */
export function stroke(pen, width, colour, unit) {
  pen.lineWidth = (width + 2.5) * unit;
  pen.strokeStyle = EDGE;
  pen.stroke();
  pen.lineWidth = width * unit;
  pen.strokeStyle = colour;
  pen.stroke();
}
