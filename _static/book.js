// What a page needs to know of the screen and of where it was opened.
"use strict";

(() => {
  // Boxes that scroll sideways where their content is wider: then, and only then, a keyboard must reach them.
  const BOXES = ".result-table, .themed-figure, mjx-container[display], .bd-article pre, .bd-article .pst-scrollable-table-container";

  function reach() {
    for (const box of document.querySelectorAll(BOXES)) {
      const scrolls = box.scrollWidth > box.clientWidth + 1 && getComputedStyle(box).overflowX !== "visible";
      if (scrolls) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
      point(box);
    }
  }

  /** Name the sides on which a box holds more; book.css says so below a table, whose edge may fall between columns. */
  function point(box) {
    const hidden = box.scrollWidth - box.clientWidth;
    const sides = [];
    if (box.tabIndex === 0 && box.scrollLeft > 1) sides.push("left");
    if (box.tabIndex === 0 && box.scrollLeft < hidden - 1) sides.push("right");
    if (sides.length) box.dataset.more = sides.join(" ");
    else delete box.dataset.more;
  }

  addEventListener("load", () => {
    reach();
    window.MathJax?.startup?.promise?.then(reach);
  });
  addEventListener("resize", reach);
  document.addEventListener("toggle", reach, true); // what was folded had no width
  document.addEventListener("scroll", (event) => event.target.matches?.(BOXES) && point(event.target), true);

  // A phone's menu of sections lies over the page: close it once a section is chosen.
  document.addEventListener("click", (event) => event.target.closest("dialog[open] a[href^='#']")?.closest("dialog").close());

  // The passage that search shows of a page is its text: without badges, and with powers as one types them.
  document.addEventListener("DOMContentLoaded", () => {
    if (typeof Search === "undefined") return;
    const textOf = Search.htmlToText;
    Search.htmlToText = (html, ...rest) =>
      textOf(html.replace(/<(span|a) class="evidence evidence-[^>]*>[^<]*<\/\1>/g, "").replaceAll("<sup>", "<sup>^"), ...rest);
  });

  // A power is one word of the index (_ext/book_search.py), however it is typed: 2^-127, 2**-127, 2⁻¹²⁷.
  const RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹";
  const lowered = (digits) => "^" + [...digits].map((digit) => (digit === "⁻" ? "-" : RAISED.indexOf(digit))).join("");
  const powersAsWords = (query) =>
    query
      .replace(/[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+/g, lowered)
      .replace(/(\d+)\s*(?:\^|\*\*)\s*[({]?\s*([-−]?)\s*(\d+)[)}]?/g, (_, base, sign, exponent) => `${base}pow_${sign && "minus"}${exponent}`);
  document.addEventListener("DOMContentLoaded", () => {
    if (typeof splitQuery === "undefined") return;
    const split = splitQuery;
    splitQuery = (query) => split(powersAsWords(query));
  });

  // A notebook is to be saved: a browser shows its JSON (jupyter-book issue 2237).
  document.addEventListener("DOMContentLoaded", () => {
    for (const link of document.querySelectorAll(".dropdown-download-buttons a[href$='.ipynb']")) {
      link.download = "";
      link.removeAttribute("target");
    }
  });

  // A page opened from disk may read no other page, so search lists titles without a passage of their text.
  if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
})();
