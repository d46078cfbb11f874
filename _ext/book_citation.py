"""Citation metadata of the articles: Highwire ``citation_*`` tags, as Google Scholar and Zotero read them, and JSON-LD.

Title and description are the page's own; author, date, version and the book's title come from CITATION.cff, the date
of the last change from the line at the foot of the page. Addresses are left out while html.baseurl is empty.
``{cite-this-book}`` shows the same as BibTeX, an entry for the book and one for each article.
"""

from __future__ import annotations

import json
import re
from html import escape
from pathlib import Path

import yaml
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

ARTICLES = "chapters/"
TEXT_LICENSE = "https://creativecommons.org/licenses/by/4.0/"
SCHEMA = "https://schema.org"


def citation_file(root: str | Path) -> dict:
    """Return the fields of CITATION.cff."""
    return yaml.safe_load((Path(root) / "CITATION.cff").read_text(encoding="utf-8"))


def add_citation(app, pagename, templatename, context, doctree) -> None:
    """Write the metadata of an article, and of the book on its landing page, into the page's head."""
    if doctree is None or not (pagename.startswith(ARTICLES) or pagename == app.config.root_doc):
        return
    work, address = citation_file(app.srcdir), app.config.html_baseurl
    book = {"@type": "WebSite", "name": work["title"], **({"url": address} if address else {})}
    if pagename == app.config.root_doc:
        about = {**book, "description": description(doctree), "author": _person(app), **_shared(app)}
    else:
        about = article(app, pagename, doctree, context["last_updated"], work) | {"isPartOf": book}
        context["metatags"] += "".join(
            f'<meta name="{name}" content="{escape(content)}" />\n' for name, content in highwire(about, work)
        )
    text = json.dumps({"@context": SCHEMA, **about}, ensure_ascii=False).replace("<", "\\u003c")
    context["metatags"] += f'<script type="application/ld+json">{text}</script>\n'


def article(app, pagename: str, doctree, last_updated: str | None, work: dict) -> dict:
    """Return an article as a schema.org TechArticle.

    last_updated  the line at the foot of the page, which begins with a date; without one the date of the release holds
    """
    changed = re.search(r"\d{4}-\d\d-\d\d", last_updated or "")
    minutes = app.env.metadata[pagename]["wordcount"]["minutes"]
    address = app.config.html_baseurl
    return {
        "@type": "TechArticle",
        "headline": app.env.titles[pagename].astext(),
        "description": description(doctree),
        "author": _person(app),
        "datePublished": work["date-released"],
        "dateModified": max(changed.group() if changed else "", work["date-released"]),
        "timeRequired": f"PT{max(1, minutes)}M",
        **_shared(app),
        **({"url": f"{address}{pagename}.html"} if address else {}),
    }


def highwire(about: dict, work: dict) -> list[tuple[str, str]]:
    """Return the Highwire tags of an article, in the form that Google Scholar's inclusion guidelines give."""
    tags = [("citation_title", about["headline"])]
    tags += [("citation_author", f"{who['family-names']}, {who['given-names']}") for who in work["authors"]]
    tags += [
        ("citation_publication_date", about["datePublished"].replace("-", "/")),
        ("citation_inbook_title", work["title"]),
        ("citation_language", about["inLanguage"]),
    ]
    return [*tags, ("citation_fulltext_html_url", about["url"])] if "url" in about else tags


class Entries(nodes.Element):
    """Where ``{cite-this-book}`` stands until every page has its title."""


class CiteThisBook(SphinxDirective):
    """``{cite-this-book}``: BibTeX entries of the book and of every article."""

    def run(self):
        """Leave the place, and have the page written again when a title or the citation file changes."""
        for path in [Path(self.env.srcdir) / "CITATION.cff", *map(self.env.doc2path, articles(self.env))]:
            self.env.note_dependency(str(path))
        return [Entries()]


def articles(env) -> list[str]:
    """Return the names of all articles."""
    return sorted(name for name in env.found_docs if name.startswith(ARTICLES))


def write_entries(app, doctree, docname) -> None:
    """Put BibTeX where ``{cite-this-book}`` stands."""
    for place in list(doctree.findall(Entries)):
        work, address = citation_file(app.srcdir), app.config.html_baseurl
        text = bibtex(work, address)
        for name in articles(app.env):
            text += "\n\n" + bibtex(work, address and f"{address}{name}.html", name, app.env.titles[name].astext())
        place.replace_self(nodes.literal_block(text, text, language="bibtex"))


def bibtex(work: dict, address: str, page: str = "", title: str = "") -> str:
    """Return the BibTeX entry of the book, or of the article on ``page`` with its title."""
    year, first = str(work["date-released"])[:4], work["authors"][0]
    fields = {
        "author": " and ".join(f"{who['family-names']}, {who['given-names']}" for who in work["authors"]),
        "title": f"{{{_tex(title or work['title'])}}}",  # in braces of its own, so that styles keep its capitals
        **({"booktitle": f"{{{_tex(work['title'])}}}"} if page else {}),
        "year": year,
        "note": f"Executable book, version {work['version']}",
        **({"url": address} if address else {}),
    }
    key = f"{first['family-names'].lower()}{year}{page.rpartition('/')[2] or 'book'}"
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items()]
    return "\n".join([f"@{'incollection' if page else 'misc'}{{{key},", *lines, "}"])


def _tex(text: str) -> str:
    return re.sub(r"[&%$#_{}]", r"\\\g<0>", text)


def read_article(page: Path) -> dict:
    """Return the JSON-LD of a built article."""
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/ld\+json">(.*?)</script>', text, re.DOTALL).group(1))


def description(doctree) -> str:
    """Return the description in a page's front matter (``myst: html_meta:``), "" where it has none."""
    return next((meta["content"] for meta in doctree.findall(nodes.meta) if meta.get("name") == "description"), "")


def _person(app) -> dict:
    return {"@type": "Person", "name": app.config.author}


def _shared(app) -> dict:
    return {"inLanguage": app.config.language, "license": TEXT_LICENSE, "isAccessibleForFree": True}


def setup(app):
    """Register the above with Sphinx."""
    app.add_node(Entries)
    app.add_directive("cite-this-book", CiteThisBook)
    app.connect("doctree-resolved", write_entries)
    app.connect("html-page-context", add_citation, priority=600)  # after the date of the page is known
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
