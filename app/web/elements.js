// Elements of the page, found and made with their types.

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
 * A new element. What comes from the service goes in as text, never as markup.
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
 * Sets text only where it changed, so that nothing is laid out for nothing and nothing is read out twice.
 * @param {Element} target
 * @param {string} text
 */
export function say(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

/**
 * Terms and what they are, as rows of a `dl`.
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
    say(row.children[0], term);
    say(row.children[1], text);
  });
}
