"""What depends on the book's public address, the one value ``html.baseurl`` of _config.yml, and on nothing else.

with an address   canonical links (Sphinx's own), og:url and social cards, sitemap.xml, the Atom feed feed.xml, and a
                  page 404.html whose links work at any depth
without           none of these, and a 404.html whose links are relative: it works from disk and at the top level
always            index.html is the landing page itself, not a redirect; repository buttons where repository.url is set
"""

from __future__ import annotations

import re
import shutil
from html import escape
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree import ElementTree

from book_citation import ARTICLES, citation_file, description, read_article
from sphinx.errors import ExtensionError

FEED, SITEMAP = "feed.xml", "sitemap.xml"
ATOM = "http://www.w3.org/2005/Atom"
SITEMAPS = "http://www.sitemaps.org/schemas/sitemap/0.9"
NOT_FOUND = {
    "title": "Page not found",
    "body": "<h1>Page not found</h1>\n<p>This book has no page at that address. "
    "The menu lists all its pages, and the search finds words in them.</p>",
}


def derive_from_address(app, config) -> None:
    """Check the address and set what other extensions want to know about it.

    Raises ExtensionError where the address is neither empty nor a full http or https address.
    """
    if config.html_baseurl:
        parts = urlsplit(config.html_baseurl)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
            right = "empty, or a full address such as https://example.org/book/"
            raise ExtensionError(f"html.baseurl in _config.yml is {config.html_baseurl!r}; it must be {right}")
        config.html_baseurl = config.html_baseurl.rstrip("/") + "/"
        config.ogp_site_url = config.html_baseurl
        config.ogp_social_cards = {"line_color": "#0072B2"}
        app.setup_extension("notfound.extension")
        config.notfound_urls_prefix = urlsplit(config.html_baseurl).path
        config.notfound_context = NOT_FOUND
    else:
        app.connect("html-collect-pages", lambda app: [("404", NOT_FOUND, "page.html")])
    if config.html_theme_options.get("repository_url"):  # Jupyter Book refuses the buttons while it is empty
        buttons = ("use_repository_button", "use_issues_button", "use_edit_page_button")
        config.html_theme_options.update(dict.fromkeys(buttons, True))


def describe_for_sharing(app, pagename, templatename, context, doctree) -> None:
    """Give sphinxext-opengraph the page's own words: it would take a numbered title and text with its TeX."""
    if doctree is None:
        return
    own = {"og:title": app.env.titles[pagename].astext(), "og:description": description(doctree)}
    kind = "article" if pagename.startswith(ARTICLES) else "website"
    escaped = {name: escape(text, quote=False) for name, text in own.items() if text}  # it escapes quotes only
    context["meta"] = {**(context["meta"] or {}), **escaped, "og:type": kind}


def link_feed(app, pagename, templatename, context, doctree) -> None:
    """Announce the feed on every page; without an address there is none, and og:url would be a relative link."""
    tags = context.get("metatags", "")  # search, index and 404 have none
    if app.config.html_baseurl:
        context["metatags"] = tags + (
            f'<link rel="alternate" type="application/atom+xml" title="{escape(context["docstitle"])}" '
            f'href="{escape(app.config.html_baseurl + FEED)}" />\n'
        )
    else:
        context["metatags"] = re.sub(r'<meta property="og:url"[^>]*>\n?', "", tags)


def write_site_files(app, exception) -> None:
    """Write index.html, sitemap.xml and feed.xml once all pages stand."""
    if exception or app.builder.name != "html":
        return
    out, address = Path(app.outdir), app.config.html_baseurl
    if app.config.root_doc != "index":
        shutil.copyfile(out / f"{app.config.root_doc}.html", out / "index.html")
    pages = sorted(app.env.found_docs)
    articles = {page: read_article(out / f"{page}.html") for page in pages if page.startswith(ARTICLES)}
    for name, tree in ((SITEMAP, sitemap(address, pages, articles)), (FEED, feed(address, articles, app))):
        (out / name).unlink(missing_ok=True)  # of an earlier build, when there was an address
        if address:
            ElementTree.indent(tree)
            ElementTree.ElementTree(tree).write(out / name, encoding="utf-8", xml_declaration=True)


def sitemap(address: str, pages: list[str], articles: dict[str, dict]) -> ElementTree.Element:
    """List every page (sitemaps.org 0.9); sphinx-sitemap lists only those that the last build wrote anew."""
    root = ElementTree.Element("urlset", xmlns=SITEMAPS)
    for page in pages:
        url = ElementTree.SubElement(root, "url")
        ElementTree.SubElement(url, "loc").text = f"{address}{page}.html"
        if page in articles:
            ElementTree.SubElement(url, "lastmod").text = articles[page]["dateModified"]
    return root


def feed(address: str, articles: dict[str, dict], app) -> ElementTree.Element:
    """List the articles, the latest change first, as an Atom feed (RFC 4287)."""
    work = citation_file(app.srcdir)
    root = ElementTree.Element("feed", xmlns=ATOM)
    newest = sorted(articles.items(), key=lambda item: (item[1]["dateModified"], item[0]), reverse=True)
    updated = newest[0][1]["dateModified"] if newest else work["date-released"]
    _head(root, f"{address}{FEED}", work["title"], updated)
    ElementTree.SubElement(root, "link", rel="self", type="application/atom+xml", href=f"{address}{FEED}")
    ElementTree.SubElement(root, "link", rel="alternate", type="text/html", href=address)
    author = ElementTree.SubElement(root, "author")
    ElementTree.SubElement(author, "name").text = app.config.author
    for page, article in newest:
        entry = ElementTree.SubElement(root, "entry")
        _head(entry, f"{address}{page}.html", article["headline"], article["dateModified"])
        ElementTree.SubElement(entry, "published").text = f"{article['datePublished']}T00:00:00Z"
        ElementTree.SubElement(entry, "link", rel="alternate", type="text/html", href=f"{address}{page}.html")
        ElementTree.SubElement(entry, "summary").text = article["description"]
    return root


def _head(element: ElementTree.Element, identifier: str, title: str, day: str) -> None:
    ElementTree.SubElement(element, "id").text = identifier
    ElementTree.SubElement(element, "title").text = title
    ElementTree.SubElement(element, "updated").text = f"{day}T00:00:00Z"


def setup(app):
    """Register the above with Sphinx."""
    app.connect("config-inited", derive_from_address)
    app.connect("html-page-context", describe_for_sharing, priority=400)  # before sphinxext-opengraph
    app.connect("html-page-context", link_feed, priority=700)  # after it
    # before sphinx-external-toc, which writes a redirect where no index.html is
    app.connect("build-finished", write_site_files, priority=400)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
