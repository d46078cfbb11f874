"""The book in other forms, made while its pages are written: notebooks that run alone, Markdown, llms.txt.

markdown  a resolved page as Markdown
twins     page.md beside page.html, and llms.txt
notebook  page.ipynb and page-with-outputs.ipynb beside page.html
here      their places in the page: a line below the title, the download menu, <link rel="alternate">
"""

from __future__ import annotations

import posixpath
from html import escape
from pathlib import Path
from urllib.parse import urlsplit

from portable import notebook, twins

NOTEBOOKS_BRANCH = "notebooks"  # where the deployment puts them, as Colab opens notebooks from GitHub only
API_PAGE = "reference/api"
MENU = {"download-source-button": "Source", "download-pdf-button": "Print or PDF"}  # the theme says ".md", ".pdf"


def write_page(app, pagename, templatename, context, doctree) -> None:
    """Write a page's other forms and lead to them."""
    if app.builder.name != "html" or doctree is None:
        return
    twins.write(app, pagename, doctree)
    name = posixpath.basename(pagename)
    links = [(f"{name}.md", "Markdown", "This page as Markdown, with its results")]
    alternates = [("text/markdown", f"{name}.md")]
    if is_article(app, pagename):
        notebook.write(app, pagename, doctree, context.get("last_updated") or "")
        clean, executed = map(posixpath.basename, notebook.names(pagename))
        links.insert(0, (clean, "Notebook", "A notebook that runs by itself, offline"))
        links.insert(1, (executed, "Notebook with outputs", "The same notebook with the outputs of this build"))
        alternates.append(("application/x-ipynb+json", clean))
        context["body"] = context["body"].replace("</h1>", "</h1>\n" + run_line(app, pagename, context["pathto"]), 1)
    context["metatags"] = context.get("metatags", "") + "".join(
        f'\n<link rel="alternate" type="{kind}" href="{name}" />' for kind, name in alternates
    )
    _extend_menu(context, links)


def is_article(app, docname: str) -> bool:
    """Return whether a page is an executed article, which a reader may want to run."""
    return docname.startswith("chapters/") and "kernelspec" in app.env.metadata[docname]


def run_line(app, docname: str, pathto) -> str:
    """Return the line below an article's title: downloads, Colab once there is an address, the code's reference."""
    clean, executed = map(posixpath.basename, notebook.names(docname))
    links = [
        f'<a href="{clean}" download>notebook</a>, runs by itself, offline',
        f'<a href="{executed}" download>with outputs</a>',
    ]
    if address := colab_address(app, docname):
        links.append(f'<a href="{escape(address)}">open in Colab</a>')
    if API_PAGE in app.env.all_docs:
        links.append(f'<a href="{pathto(API_PAGE)}">the code</a>')
    return f'<p class="run-line">Run it: {" · ".join(links)}</p>'


def colab_address(app, docname: str) -> str:
    """Return Colab's address for an article, derived from ``repository.url``; empty while that is empty, or elsewhere.

    Colab opens notebooks from GitHub; the deployment pushes them to a branch of the same repository.
    """
    parts = urlsplit(app.config.html_theme_options.get("repository_url", ""))
    if parts.netloc != "github.com":
        return ""
    repository = parts.path.strip("/").removesuffix(".git")
    return f"https://colab.research.google.com/github/{repository}/blob/{NOTEBOOKS_BRANCH}/{docname}.ipynb"


def _extend_menu(context, links) -> None:
    """Put the forms at the head of the theme's download menu, whose own entries are the page's source and printing."""
    for group in context.get("header_buttons", []):
        if group.get("label") == "download-buttons":
            for button in group["buttons"]:
                button["text"] = MENU.get(button["label"], button["text"])
            group["buttons"][:0] = [
                {"type": "link", "url": url, "text": text, "tooltip": tip, "icon": "fas fa-download", "label": "form"}
                for url, text, tip in links
            ]


def write_list(app, exception) -> None:
    """Write llms.txt once all pages are there."""
    if exception is None and app.builder.name == "html":
        (Path(app.outdir) / "llms.txt").write_text(twins.llms_txt(app), encoding="utf-8")


def setup(app):
    """Register with Sphinx; pages are complete only after the theme (501) and the book's own extension."""
    app.connect("html-page-context", write_page, priority=800)
    app.connect("build-finished", write_list)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
