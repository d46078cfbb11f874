// What the explorers share: changing the page only where it must change, and the state in the page's address.
"use strict";

window.chipmath = (() => {
  // What the badge says from then on: the table was the model's own, now the script goes along with the fields.
  const LIVE = "arithmetic run in this page, tested to equal chipmath's";

  /** Set a node's text if it differs: an input then touches no more nodes than it changes. */
  function put(node, text) {
    if (node.textContent !== text) node.textContent = text;
  }

  /** Set or, with null, remove an attribute if it differs. */
  function mark(node, name, value) {
    if (value === null) {
      if (node.hasAttribute(name)) node.removeAttribute(name);
    } else if (node.getAttribute(name) !== String(value)) {
      node.setAttribute(name, value);
    }
  }

  function show(node, shown) {
    if (node.hidden === shown) node.hidden = !shown;
  }

  /** A new node; "svg:rect" is one of SVG. */
  function element(name, attributes = {}, children = []) {
    const node = name.startsWith("svg:")
      ? document.createElementNS("http://www.w3.org/2000/svg", name.slice(4))
      : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  }

  /** A whole number with a true minus and thousands separators. */
  function number(value) {
    return (value < 0 ? "−" : "") + String(Math.abs(value)).replace(/\B(?=(\d{3})+$)/g, ",");
  }

  /** "4 waves", on one line. */
  function plural(count, noun) {
    return `${number(count)}\u00a0${noun}${Math.abs(count) === 1 ? "" : "s"}`;
  }

  function mapped(object, change) {
    return Object.fromEntries(Object.entries(object).map(([key, value]) => [key, change(value)]));
  }

  /** The address of a state: "#occupancy:registers=96&threads=256". */
  function address(name, state) {
    return `#${name}:${new URLSearchParams(state).toString().replaceAll("%2C", ",")}`;
  }

  /** The state in the page's address, or null where it holds none of this explorer. */
  function addressed(name) {
    const prefix = `#${name}:`;
    if (!location.hash.startsWith(prefix)) return null;
    return Object.fromEntries(new URLSearchParams(location.hash.slice(prefix.length)));
  }

  /**
   * Start every explorer of one kind. startOne(root, changed) returns {read, write}: read() gives the last valid state,
   * write(state) takes one from the address, with any text in it, and shows what is wrong with it. startOne calls
   * changed() after each change by the reader. The first explorer of a page owns the page's address.
   */
  function start(name, startOne) {
    document.querySelectorAll(`[data-explorer="${name}"]`).forEach((root, index) => {
      const form = root.querySelector("form");
      const link = root.querySelector(".explorer-link a");
      const linkTo = () => {
        const target = address(name, explorer.read());
        mark(link, "href", target);
        for (const badge of root.querySelectorAll(".evidence-computed")) {
          mark(badge, "data-tip", LIVE);
          mark(badge, "aria-label", `computed: ${LIVE}`);
        }
        return target;
      };
      const explorer = startOne(root, () => {
        const target = linkTo();
        // Replaced, not pushed: the back button leads to the page before, not through every position of a slider.
        if (index === 0) history.replaceState(null, "", target);
      });
      const restore = () => {
        const state = addressed(name);
        if (state === null) return;
        explorer.write(state);
        linkTo();
        root.scrollIntoView();
      };
      mark(link, "href", address(name, explorer.read()));
      form.addEventListener("submit", (event) => event.preventDefault());
      form.hidden = false;
      root.querySelector(".explorer-without").hidden = true;
      if (index > 0) return;
      window.addEventListener("hashchange", restore);
      restore();
    });
  }

  return { put, mark, show, element, number, plural, mapped, start };
})();
