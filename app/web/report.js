// The last word of a session: what became of its frames.

import { fillRows, make } from "./elements.js";
import { bytes, duration } from "./words.js";

/** @import { Report } from "./protocol.js" */

/** @param {Report} report */
export function reportTable({ received, processed, dropped, failed, bytes: size, duration_s, stages }) {
  const reasons = Object.entries(dropped).map(([reason, count]) => `${reason.replaceAll("_", " ")} ${count}`);
  const list = make("dl", { className: "rows" });
  const total = stages.total;
  /** @type {[string, string][]} */
  const rows = [
    ["Lasted", duration(duration_s)],
    ["Frames", `${received}, ${bytes(size)}`],
    ["Analysed", String(processed)],
    ["Dropped", reasons.join(", ") || "none"],
  ];
  if (failed) rows.push(["Failed", String(failed)]);
  if (total) rows.push(["A frame took", `${total.p50_ms.toFixed(0)} ms, p95 ${total.p95_ms.toFixed(0)} ms`]);
  fillRows(list, rows);
  return list;
}
