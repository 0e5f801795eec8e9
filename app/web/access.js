// The tokens: kept for this tab, as long as it is open.

import { element } from "./elements.js";
import { recall, remember } from "./memory.js";

const FIELDS = { token: "sightline.token", "start-token": "sightline.start-token" };

export class Access {
  /** Enter was pressed in one of the fields. */
  onenter = () => {};

  constructor() {
    for (const [id, key] of Object.entries(FIELDS)) {
      const field = element(id, HTMLInputElement);
      field.value = recall("tab", key) ?? "";
      field.onchange = () => remember("tab", key, field.value);
    }
    const form = element("access", HTMLDetailsElement).querySelector("form");
    if (!form) return;
    form.onsubmit = (event) => {
      event.preventDefault();
      this.onenter();
    };
  }

  get token() {
    return element("token", HTMLInputElement).value || undefined;
  }

  get startToken() {
    return element("start-token", HTMLInputElement).value || undefined;
  }

  /** Only where there is a server to start. */
  askForStartToken() {
    element("start-token-row", HTMLLabelElement).hidden = false;
  }

  /** The service wants a token: here it goes. */
  ask() {
    element("access", HTMLDetailsElement).open = true;
    element("token", HTMLInputElement).focus();
  }
}
