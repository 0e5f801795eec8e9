// What the stream shows, in words: a card for each summary, the newest first.

import { element, make, within } from "./elements.js";
import { reachable } from "./scrolling.js";

/** @import { Summary } from "./protocol.js" */

const MOST = 12;
reachable(within(element("summaries", HTMLElement), "ol", HTMLOListElement));

const SOURCES = { llm: "LLM", digest: "digest" };

/** @param {Summary} summary */
export function showSummary(summary) {
  const section = element("summaries", HTMLElement);
  const list = within(section, "ol", HTMLOListElement);
  section.hidden = false;
  list.prepend(card(summary));
  while (list.children.length > MOST) list.lastElementChild?.remove();
}

export function clearSummaries() {
  const section = element("summaries", HTMLElement);
  within(section, "ol", HTMLOListElement).replaceChildren();
  section.hidden = true;
}

/** @param {Summary} summary */
function card({ source, title, scene, activities = [], visible_text = [], concerns = [], generated_at_ms }) {
  const made = new Date(generated_at_ms);
  const mark = make("span", { className: "mark", textContent: SOURCES[source] ?? source });
  mark.dataset.source = source;
  const time = make("time", { dateTime: made.toISOString(), textContent: made.toLocaleTimeString() });
  const facts = [
    ["Happening", activities.join("; ")],
    ["Text", visible_text.join(", ")],
    ["Concerns", concerns.join("; ")],
  ].filter(([, text]) => text);
  return make(
    "li",
    {},
    make("h3", {}, title, mark),
    make("p", { textContent: scene }),
    ...facts.map(([name, text]) => make("p", { className: "fact" }, make("b", { textContent: `${name}: ` }), text)),
    time,
  );
}
