// What scrolls is reached by keyboard: browsers scroll only what has the focus, or has something in it that may.

const CONTROLS = "button:enabled, input:enabled, select:enabled, summary, a[href], [tabindex='0']";

/** @param {HTMLElement} region May scroll: it takes the focus as long as it does, and nothing in it could. */
export function reachable(region) {
  const look = () => {
    const scrolls = region.scrollHeight > region.clientHeight + 1 || region.scrollWidth > region.clientWidth + 1;
    const shown = [...region.querySelectorAll(CONTROLS)].some((control) => control.checkVisibility());
    if (scrolls && !shown) region.tabIndex = 0;
    else region.removeAttribute("tabindex");
  };
  new ResizeObserver(look).observe(region);
  new MutationObserver(look).observe(region, { childList: true, subtree: true, characterData: true });
}
