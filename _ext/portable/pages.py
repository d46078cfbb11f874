"""Addresses and facts of a page that twins and notebooks share."""

from __future__ import annotations

import posixpath
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import yaml
from docutils import nodes


def page_address(app, docname: str) -> str:
    """Return a page's public address, empty while the book has none (``html.baseurl``)."""
    return urljoin(app.config.html_baseurl, f"{docname}.html") if app.config.html_baseurl else ""


def description(app, docname: str) -> str:
    """Return the description that a page's front matter gives it, for search engines and llms.txt alike."""
    text = Path(app.env.doc2path(docname)).read_text(encoding="utf-8")
    front = yaml.safe_load(text[4:].partition("\n---")[0]) if text.startswith("---\n") else {}
    return front.get("myst", {}).get("html_meta", {}).get("description", "")


def title(app, docname: str) -> str:
    """Return a page's title as text."""
    return app.env.titles[docname].astext()


def target_page(docname: str, address: str) -> str | None:
    """Return the page of this book that a link of the built ``docname`` leads to; None for any other address."""
    parts = urlsplit(address)
    if parts.scheme or parts.netloc or not parts.path.endswith(".html"):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(docname), parts.path.removesuffix(".html")))


def chapters(app) -> list[tuple[str, list[str]]]:
    """Return the parts of the table of contents with their pages, the landing page first, under no caption."""
    site = app.env.external_site_map
    parts = [("", [site.root.docname])]
    for tree in site.root.subtrees:
        parts.append((tree.caption or "Pages", [item for item in map(str, tree.items) if item in app.env.all_docs]))
    return [(caption, pages) for caption, pages in parts if pages]


def cited(doctree: nodes.document) -> list[str]:
    """Return the ids of the bibliography entries that a page cites, in the order of the page."""
    found = [urlsplit(node.get("refuri", "")).fragment for node in doctree.findall(nodes.reference)]
    return list(dict.fromkeys(name for name in found if name.startswith("cite-")))
