"""The built site as files: every link leads somewhere, ids are unique, pages are valid HTML and light to load."""

import gzip
import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup
from test_book import ARTICLES, HTML, PAGES

pytestmark = pytest.mark.built

LINKS = {"a": "href", "link": "href", "area": "href", "script": "src", "img": "src", "source": "src", "iframe": "src"}
ARTICLE_BYTES = 300_000
LANDING_BYTES = 250_000
# Rules that a page of this book breaks through the work of others: message -> (whose, what it takes to mend it there).
OTHERS_INVALID = {
    "Element “p” not allowed as child of element “summary” in this context. (Suppressing further errors from this "
    "subtree.)": "MyST-NB's hidden cells: <summary><p class=admonition-title>",
}


def site_pages() -> list[str]:
    """Return every HTML file of the built book but templates that the theme ships in _static."""
    found = [path.relative_to(HTML) for path in HTML.rglob("*.html")]
    return sorted(path.as_posix() for path in found if path.parts[0] != "_static")


@cache
def soup_of(page: str) -> BeautifulSoup:
    return BeautifulSoup((HTML / page).read_text(encoding="utf-8"), "html.parser")


@cache
def ids_of(page: str) -> frozenset[str]:
    return frozenset(tag["id"] for tag in soup_of(page)(id=True))


def broken(page: str, link: str) -> str:
    """Say what is wrong with a link of a page ("" for nothing); links to other hosts are not followed."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc or link in ("", "#"):
        return ""
    target = (HTML / page).parent / unquote(parts.path) if parts.path else HTML / page
    target = target.resolve()
    if not target.is_relative_to(HTML) or not target.is_file():
        return f"{page}: {link}: no such file"
    if not parts.fragment or target.suffix != ".html":
        return ""
    name = target.relative_to(HTML).as_posix()
    if "=" in parts.fragment and soup_of(name).select("[data-explorer]"):
        return ""  # the state of an explorer, which reads it itself
    return "" if unquote(parts.fragment) in ids_of(name) else f"{page}: {link}: no such id"


def test_there_is_a_site():
    assert {f"{page}.html" for page in PAGES} | {"index.html", "404.html", "search.html"} <= set(site_pages())


def test_every_link_leads_to_a_file_and_a_place_in_it():
    found = []
    for page in site_pages():
        links = [tag[LINKS[tag.name]] for tag in soup_of(page)(list(LINKS)) if tag.get(LINKS[tag.name])]
        found += [problem for link in links if (problem := broken(page, link))]
    assert found == []


@pytest.mark.parametrize("link", ["nowhere.html", "intro.html#nowhere", "#nowhere", "../outside.html"])
def test_a_broken_link_is_seen(link):
    assert broken("intro.html", link)


def test_style_sheets_name_files_that_exist():
    found = []
    for sheet in HTML.rglob("*.css"):
        for address in re.findall(r"url\(\s*['\"]?([^'\")]+)", sheet.read_text(encoding="utf-8")):
            if (
                not address.startswith(("data:", "#"))
                and not (sheet.parent / address.split("?")[0].split("#")[0]).exists()
            ):
                found.append(f"{sheet.relative_to(HTML)}: {address}")
    assert found == []


def test_ids_are_unique_on_every_page():
    for page in site_pages():
        ids = [tag["id"] for tag in soup_of(page)(id=True)]
        assert sorted(ids) == sorted(set(ids)), page


@pytest.mark.slow
def test_pages_are_valid_html():
    checker = shutil.which("vnu")
    if not checker:
        pytest.skip("HTML VALIDATION SKIPPED: no vnu on this machine (npm install -g vnu-jar; it needs Java)")
    pages = [str(HTML / page) for page in site_pages()]
    done = subprocess.run([checker, "--errors-only", "--format", "json", *pages], capture_output=True, text=True)
    messages = json.loads(done.stderr or done.stdout)["messages"]
    ours = [m for m in messages if m["message"] not in OTHERS_INVALID]
    assert [(Path(m["url"]).name, m.get("lastLine"), m["message"]) for m in ours] == []


def loaded(page: str) -> set[Path]:
    """Return the files of the book that a page loads when it opens."""
    tags = [tag for tag in soup_of(page)(["link", "script", "img"]) if tag.name != "link" or "stylesheet" in tag["rel"]]
    links = [tag[LINKS[tag.name]] for tag in tags if tag.get(LINKS[tag.name])]
    return {((HTML / page).parent / unquote(urlsplit(x).path)).resolve() for x in links if not urlsplit(x).scheme}


def compressed(path: Path) -> int:
    return len(gzip.compress(path.read_bytes(), 6))


def test_landing_page_is_light():
    sizes = {path.name: compressed(path) for path in loaded("index.html") | {HTML / "index.html"}}
    assert sum(sizes.values()) < LANDING_BYTES, sizes


def test_mathjax_is_loaded_where_a_formula_is_and_nowhere_else():
    for page in site_pages():
        has_formula = bool(soup_of(page).select(".math"))
        assert has_formula == any("mathjax" in path.parts for path in loaded(page)), page


def test_every_page_has_an_icon_a_language_and_a_title_of_its_own():
    titles = {}
    for page in site_pages():
        icon = soup_of(page).find("link", rel="icon")["href"]
        assert not broken(page, icon)
        assert soup_of(page).html["lang"] == "en"
        titles.setdefault(soup_of(page).title.text, []).append(page)
    assert [pages for pages in titles.values() if len(pages) > 1] == [["index.html", "intro.html"]]  # the same page
    assert not [title for title in titles if title.count("Shekhar Pandey") != 1]


@pytest.mark.parametrize("article", ARTICLES)
def test_article_is_light(article):
    """What an article adds to what all pages share, compressed; MathJax is shared by all pages with formulas."""
    page = f"{article}.html"
    shared = set.intersection(*(loaded(f"{name}.html") for name in PAGES))
    own = {path for path in loaded(page) - shared if "mathjax" not in path.parts} | {HTML / page}
    sizes = {path.name: compressed(path) for path in own}
    assert sum(sizes.values()) < ARTICLE_BYTES, sizes
