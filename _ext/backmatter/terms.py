"""Glossary tips: wherever a page uses ``{term}``, the definition shows on hover and focus.

Sphinx makes the link to the glossary; this adds the definition, values included, as plain text in ``data-tip``, which
the styles show without a script. A changed definition has the pages that use the term written again.
"""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

from bs4 import BeautifulSoup
from docutils import nodes

GLOSSARY = "reference/glossary"
LINK = re.compile(
    r'<a class="reference internal" href="(?P<href>[^"]*glossary\.html#(?P<id>term-[^"]+))"[^>]*>'
    r'(?P<text><span class="xref std std-term">.*?</span>)</a>'
)


def definitions(env) -> dict[str, str]:
    """Return each term's definition as plain text, by the id that Sphinx gives the term."""
    if GLOSSARY not in env.found_docs:
        return {}
    doctree = env.get_doctree(GLOSSARY)
    found = {}
    for item in doctree.findall(nodes.definition_list_item):
        text = " ".join(plain(child) for child in item.children if isinstance(child, nodes.definition))
        found |= {name: text for term in item.findall(nodes.term) for name in term["ids"]}
    return found


def plain(node: nodes.Node) -> str:
    """Return a node as text, glued values without their badges."""
    if isinstance(node, nodes.raw):
        soup = BeautifulSoup(node.astext() if node["format"] == "html" else "", "html.parser")
        for badge in soup.select(".evidence"):
            badge.decompose()
        return soup.get_text()
    if isinstance(node, nodes.Text):
        return node.astext()
    return "".join(plain(child) for child in node.children)


def add_tips(app, pagename, templatename, context, doctree) -> None:
    """Write the definitions into a page's links to terms."""
    if doctree is None or "std-term" not in context.get("body", ""):
        return
    tips = definitions(app.env)

    def with_tip(link: re.Match) -> str:
        tip = " ".join(tips[link["id"]].split())
        return f'<a class="term" href="{link["href"]}" data-tip="{escape(tip)}">{link["text"]}</a>'

    context["body"] = LINK.sub(with_tip, context["body"])


def pages_with_tips(app, env) -> list[str]:
    """Have pages that use terms written again when a definition has changed."""
    now = definitions(env)
    before, env.backmatter_definitions = getattr(env, "backmatter_definitions", now), now
    if before == now:
        return []
    return [page for page in env.found_docs if "{term}" in Path(env.doc2path(page)).read_text(encoding="utf-8")]


def setup(app):
    """Register with Sphinx."""
    app.connect("html-page-context", add_tips)
    app.connect("env-updated", pages_with_tips)
