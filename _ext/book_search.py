"""The search index gets the words that a reader sees in results: table cells apart, badges and descriptions included.

Sphinx strips tags from raw HTML without a space in their place, so that a table's cells become one long word. Nor would
it find a power: words end at signs, and its search leaves out what is digits only. So 2⁻¹²⁷ is also the word
2pow_minus127 here, and _static/book.js makes that word of what a reader types: 2^-127, 2**-127 or 2⁻¹²⁷.
"""

from __future__ import annotations

import re

from bs4 import BeautifulSoup
from docutils import nodes

RAISED = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
POWER = re.compile(r"(?<![\w.])(\d+)(?:\^|\*\*)[({]?([-−]?)(\d+)")


def index_results(app) -> None:
    """Have the builder index a copy of each page in which every HTML result is its readable text."""
    if app.builder.format != "html":
        return
    index_page = app.builder.index_page

    def index_readable(pagename, doctree, title):
        index_page(pagename, readable(doctree), title)

    app.builder.index_page = index_readable


def readable(doctree: nodes.document) -> nodes.document:
    """Return a copy of a page in which text stands for raw HTML."""
    copy = doctree.deepcopy()
    for node in list(copy.findall(nodes.raw)):
        if "html" in node.get("format", "").split():
            text = "^" if node.astext() == "<sup>" else words(node.astext())
            node.replace_self(nodes.inline("", text))
    for block in list(copy.findall(nodes.TextElement)):
        if not isinstance(block, nodes.title) and (found := powers(block.astext())):
            block += nodes.inline("", f" {found}")
    return copy


def powers(text: str) -> str:
    """Return a word for each power in a text."""
    text = re.sub("[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda raised: f"^{raised[0].translate(RAISED)}", text)
    found = (f"{base}pow_{'minus' if sign else ''}{exponent}" for base, sign, exponent in POWER.findall(text))
    return " ".join(dict.fromkeys(found))


def words(html: str) -> str:
    """Return the text of some HTML with a space at every tag, and what badges and figures say of themselves."""
    soup = BeautifulSoup(html, "html.parser")
    for hidden in soup(["style", "script", "template"]):
        hidden.extract()
    for place_to_break in soup("wbr"):  # within a word
        place_to_break.extract()
    soup.smooth()
    said = [tag["aria-label"] for tag in soup(attrs={"aria-label": True})]
    return " ".join([soup.get_text(" "), *said])


def setup(app):
    """Register the above with Sphinx."""
    app.connect("builder-inited", index_results)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
