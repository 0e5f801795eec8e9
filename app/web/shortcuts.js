// Single keys for what is used often. They can be switched off, since a screen reader or a voice may type.

import { element, fillRows, within } from "./elements.js";
import { recall, remember } from "./memory.js";

const KEPT = "sightline.shortcuts";

/** @typedef {{key: string, title: string, run: () => void}} Shortcut */

/** @param {Shortcut[]} shortcuts */
export function listen(shortcuts) {
  const dialog = element("shortcuts", HTMLDialogElement);
  const on = element("shortcuts-on", HTMLInputElement);
  const all = [...shortcuts, { key: "?", title: "this list", run: () => dialog.showModal() }];
  on.checked = recall("browser", KEPT) !== "off";
  on.onchange = () => remember("browser", KEPT, on.checked ? "on" : "off");
  fillRows(within(dialog, "dl", HTMLDListElement), all.map(({ key, title }) => [key, title]));
  element("help", HTMLButtonElement).onclick = () => dialog.showModal();
  document.addEventListener("keydown", (event) => {
    if (!on.checked || dialog.open || event.repeat) return;
    if (event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return;
    const found = all.find(({ key }) => key === event.key.toLowerCase());
    if (!found) return;
    event.preventDefault();
    found.run();
  });
}

/** @param {EventTarget | null} target */
function typing(target) {
  if (target instanceof HTMLInputElement) return !["checkbox", "range", "file"].includes(target.type);
  return target instanceof HTMLSelectElement || target instanceof HTMLTextAreaElement;
}
