// What a page needs to know of the screen and of where it was opened.
"use strict";

(() => {
  // Boxes that scroll sideways where their content is wider: then, and only then, a keyboard must reach them.
  const BOXES = ".result-table, .themed-figure, mjx-container[display], .bd-article pre, .bd-article .pst-scrollable-table-container";

  function reach() {
    for (const box of document.querySelectorAll(BOXES)) {
      const scrolls = box.scrollWidth > box.clientWidth && getComputedStyle(box).overflowX !== "visible";
      if (scrolls) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    }
  }

  addEventListener("load", () => {
    reach();
    window.MathJax?.startup?.promise?.then(reach);
  });
  addEventListener("resize", reach);

  // A page opened from disk may read no other page, so search lists titles without a passage of their text.
  if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
})();
