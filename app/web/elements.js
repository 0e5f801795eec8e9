// Finds, makes and fills elements of the page, with their types.

const CONTROLS = "button:enabled, input:enabled, select:enabled, summary, a[href], [tabindex='0']";

/**
 * The element with this id.
 * @template {HTMLElement} T
 * @param {string} id
 * @param {new () => T} type
 * @returns {T}
 */
export function element(id, type) {
  const found = document.getElementById(id);
  if (!(found instanceof type)) throw new Error(`the page has no ${type.name} with the id ${id}`);
  return found;
}

/**
 * The first element inside another that matches.
 * @template {HTMLElement} T
 * @param {ParentNode} parent
 * @param {string} selector
 * @param {new () => T} type
 * @returns {T}
 */
export function within(parent, selector, type) {
  const found = parent.querySelector(selector);
  if (!(found instanceof type)) throw new Error(`the page has no ${type.name} at ${selector}`);
  return found;
}

/**
 * Makes an element. Strings become text, never markup, so that the service's data cannot inject any.
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Partial<HTMLElementTagNameMap[K]>} [properties]
 * @param {...(Node | string)} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/**
 * Sets the text only where it differs, so that the browser does no needless layout and screen readers do not repeat it.
 * @param {Element} target
 * @param {string} text
 */
export function setText(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

/**
 * Shows pairs of term and description as the rows of a `dl`.
 * @param {HTMLElement} list
 * @param {[string, string][]} rows
 */
export function fillRows(list, rows) {
  while (list.children.length > rows.length) list.lastElementChild?.remove();
  rows.forEach(([term, text], index) => {
    let row = list.children[index];
    if (!row) {
      row = make("div", {}, make("dt"), make("dd"));
      list.append(row);
    }
    setText(row.children[0], term);
    setText(row.children[1], text);
  });
}

/**
 * Makes a scrolling region reachable by keyboard, because browsers scroll only what has the focus or contains it: the region
 * takes the focus while it overflows and contains no control that could.
 * @param {HTMLElement} region
 */
export function focusWhenScrolling(region) {
  const update = () => {
    const scrolls = region.scrollHeight > region.clientHeight + 1 || region.scrollWidth > region.clientWidth + 1;
    const hasControl = [...region.querySelectorAll(CONTROLS)].some((control) => control.checkVisibility());
    if (scrolls && !hasControl) region.tabIndex = 0;
    else region.removeAttribute("tabindex");
  };
  new ResizeObserver(update).observe(region);
  new MutationObserver(update).observe(region, { childList: true, subtree: true, characterData: true });
}
