"""A Markdown twin beside every page, ``page.md`` for ``page.html``, and ``llms.txt``, which lists them."""

from __future__ import annotations

import os
import posixpath
from pathlib import Path
from urllib.parse import urlsplit

from chipbook.badges import bibliography

from portable.markdown import TERM, MarkdownWriter
from portable.pages import chapters, description, page_address, target_page, title


def twin(app, docname: str, doctree) -> str:
    """Return a resolved page as Markdown: every value with its kind of evidence in words, links to other twins."""
    numbers, sources = app.env.toc_fignumbers.get(docname, {}), bibliography(Path(app.srcdir))
    writer = MarkdownWriter(lambda address: _link(docname, address), in_words, numbers, sources=sources)
    head = ["---", f"title: {_quoted(title(app, docname))}"]
    if about := description(app, docname):
        head.append(f"description: {_quoted(about)}")
    head += [f"page: {page_address(app, docname) or posixpath.basename(docname) + '.html'}", "---"]
    return "\n\n".join(["\n".join(head), *writer.blocks(doctree)]) + "\n"


def in_words(kinds: list[str]) -> str:
    """Return what stands behind a value, to write after it."""
    return f" ({', '.join(dict.fromkeys(kinds))})"


def llms_txt(app) -> str:
    """Return the list of all pages in the form of llmstxt.org: title, summary, sections of links to Markdown."""
    (_, [root]), *parts = chapters(app)
    base = app.config.html_baseurl
    lines = [f"# {title(app, root)}", "", f"> {description(app, root)}", ""]
    lines += [
        "Every value says in words what stands behind it: computed when the page was built, compiled by a real",
        "compiler for a named chip, measured on hardware, or cited. Start with",
        f"[the landing page]({base}{root}.md).",
    ]
    for caption, pages in parts:
        lines += ["", f"## {caption}", ""]
        for page in pages:
            about = description(app, page)
            lines.append(f"- [{title(app, page)}]({base}{page}.md)" + (f": {about}" if about else ""))
    return "\n".join(lines) + "\n"


def write(app, docname: str, doctree) -> None:
    """Put the twin beside the built page."""
    path = Path(app.outdir) / f"{docname}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(twin(app, docname, doctree), encoding="utf-8")


def _link(docname: str, address: str) -> str | None:
    """Return where a link of the page leads in the twin: to other twins, of whose anchors only terms exist there."""
    if address.startswith("#"):
        return None
    page = target_page(docname, address)
    if page is None:
        return address
    fragment = urlsplit(address).fragment
    place = f"#{fragment}" if fragment.startswith(TERM) else ""
    return os.path.relpath(f"{page}.md", posixpath.dirname(docname) or ".") + place


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
