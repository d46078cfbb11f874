// Badges by keyboard: one tab stop for a paragraph, list item or table; arrow keys lead on to its other badges.
// Without this script every badge is a tab stop of its own, as the HTML has it.
"use strict";

(() => {
  const BADGE = "article .evidence";
  const GROUP = "table, p, li, dd, dt, figcaption, .evidence-line";
  const STEPS = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity };

  function together(badge) {
    const group = badge.closest(GROUP);
    return group ? [...group.querySelectorAll(".evidence")].filter((other) => other.closest(GROUP) === group) : [badge];
  }

  /** Make one badge of its group the one that the Tab key reaches. */
  function offer(badge, group) {
    for (const other of group) other.tabIndex = other === badge ? 0 : -1;
  }

  function start() {
    const seen = new Set();
    for (const badge of document.querySelectorAll(BADGE)) {
      if (seen.has(badge)) continue;
      const group = together(badge);
      for (const other of group) {
        seen.add(other);
        if (group.length > 1) other.setAttribute("aria-keyshortcuts", "ArrowLeft ArrowRight");
      }
      offer(badge, group);
    }
  }

  document.addEventListener("keydown", (event) => {
    const badge = event.target.closest(BADGE);
    if (!badge || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "Escape") badge.classList.add("evidence-quiet"); // its tip covers what stands beside it
    if (!(event.key in STEPS)) return;
    const group = together(badge);
    const place = Math.min(Math.max(group.indexOf(badge) + STEPS[event.key], 0), group.length - 1);
    event.preventDefault();
    group[place].focus();
  });
  document.addEventListener("focusin", (event) => {
    const badge = event.target.closest(BADGE);
    if (badge) offer(badge, together(badge));
  });
  document.addEventListener("focusout", (event) => event.target.classList.remove("evidence-quiet"));
  document.addEventListener("DOMContentLoaded", start);
})();
