"""One public address, or none: all that derives from html.baseurl and repository.url, on a toy book."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit
from xml.etree import ElementTree

import pytest
import yaml
from book_address import ATOM, SITEMAPS, derive_from_address, feed, sitemap, write_site_files
from book_citation import TEXT_LICENSE, article
from bs4 import BeautifulSoup
from conftest import ROOT, ToyBook
from docutils import nodes
from sphinx.errors import ExtensionError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # Sphinx and pytest bring it

ADDRESS = "https://example.org/book/"
REPOSITORY = "https://github.com/example/book"
ARTICLE = """---
file_format: mystnb
kernelspec: {name: python3, display_name: Python 3}
myst:
  html_meta:
    description: "What <one> scale & 32 values do."
---
# Scales of $2^n$ & blocks

Some words, $x = 1$.
"""


def make(root: Path, *, baseurl: str, repository: str = "") -> ToyBook:
    book = ToyBook(root)
    (root / "chapters").mkdir()
    (root / "chapters/article.md").write_text(ARTICLE)
    pages = "\n".join(f"- file: {page}" for page in ("page", "chapters/article", "references"))
    (root / "_toc.yml").write_text(f"format: jb-book\nroot: intro\ndefaults: {{numbered: true}}\nchapters:\n{pages}\n")
    config = (root / "_config.yml").read_text()
    config = config.replace('baseurl: ""', f'baseurl: "{baseurl}"').replace('  url: ""', f'  url: "{repository}"')
    (root / "_config.yml").write_text(config)
    return book


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A toy book with an address; written without the slash at its end, which the build adds."""
    book = make(tmp_path_factory.mktemp("published"), baseurl=ADDRESS.rstrip("/"), repository=REPOSITORY)
    status, output = book.build()
    assert status == 0, output
    return book


@pytest.fixture(scope="module")
def unpublished(tmp_path_factory):
    book = make(tmp_path_factory.mktemp("unpublished"), baseurl="")
    status, output = book.build()
    assert status == 0, output
    return book


def soup(book: ToyBook, page: str) -> BeautifulSoup:
    return BeautifulSoup(book.html(page), "html.parser")


def metas(book: ToyBook, page: str) -> dict[str, str]:
    return {tag.get("property") or tag.get("name"): tag["content"] for tag in soup(book, page)("meta", content=True)}


def canonical(book: ToyBook, page: str) -> list[str]:
    return [tag["href"] for tag in soup(book, page).select('link[rel="canonical"]')]


def json_ld(book: ToyBook, page: str) -> dict:
    (script,) = soup(book, page)("script", type="application/ld+json")
    assert "<" not in script.string, "a text that holds </script> would end it"
    return json.loads(script.string)


def test_canonical_links_and_shared_addresses(published):
    for page in ("intro", "page", "chapters/article"):
        assert canonical(published, page) == [f"{ADDRESS}{page}.html"]
        assert metas(published, page)["og:url"] == f"{ADDRESS}{page}.html"
    image = metas(published, "chapters/article")["og:image"]
    assert image.startswith(ADDRESS)
    assert (published.root / "_build/html" / image.removeprefix(ADDRESS)).stat().st_size > 1000


def test_shared_words_are_the_pages_own(published):
    found = metas(published, "chapters/article")
    assert found["og:title"] == "Scales of 2^n & blocks"
    assert found["og:description"] == found["description"] == "What <one> scale & 32 values do."
    assert found["og:type"] == "article"
    assert metas(published, "intro")["og:type"] == "website"


def test_sitemap_lists_every_page_after_every_build(published):
    """sphinx-sitemap lists only the pages that a build writes anew: here one of four."""

    def listed():
        tree = ElementTree.parse(published.root / "_build/html/sitemap.xml")
        return [loc.text for loc in tree.iter(f"{{{SITEMAPS}}}loc")]

    every = [f"{ADDRESS}{page}.html" for page in ("chapters/article", "intro", "page", "references")]
    assert listed() == every
    published.add("\nOne more sentence.\n")
    assert published.build()[0] == 0
    assert listed() == every


def test_feed_is_atom(published):
    """What RFC 4287 requires of a feed and its entries, section 4.1."""
    root = ElementTree.parse(published.root / "_build/html/feed.xml").getroot()
    tag = lambda name: f"{{{ATOM}}}{name}"  # noqa: E731
    assert root.tag == tag("feed")
    entries = root.findall(tag("entry"))
    assert len(entries) == 1
    for element in (root, *entries):
        for name in ("id", "title", "updated"):
            (child,) = element.findall(tag(name))
            assert child.text
        assert urlsplit(element.find(tag("id")).text).scheme == "https"
        day, time = element.find(tag("updated")).text.split("T")
        assert (len(day), time) == (10, "00:00:00Z")
    assert root.find(f"{tag('author')}/{tag('name')}").text == "Shekhar Pandey"
    links = {link.get("rel"): link.get("href") for link in root.findall(tag("link"))}
    assert links == {"self": f"{ADDRESS}feed.xml", "alternate": ADDRESS}
    (entry,) = entries
    assert entry.find(tag("title")).text == "Scales of 2^n & blocks"
    assert entry.find(tag("link")).get("href") == entry.find(tag("id")).text == f"{ADDRESS}chapters/article.html"
    assert entry.find(tag("summary")).text == "What <one> scale & 32 values do."
    announced = soup(published, "page").select('link[type="application/atom+xml"]')
    assert [link["href"] for link in announced] == [f"{ADDRESS}feed.xml"]


def test_lost_reader_finds_styles_and_menu_at_any_depth(published):
    page = soup(published, "404")
    local = [tag.get("href") or tag.get("src") for tag in page(["link", "script", "a"])]
    local = [link for link in local if link and not link.startswith(("#", "https:", "mailto:"))]
    assert any("_static/styles/" in link for link in local)
    assert any(link == "/book/page.html" for link in local)
    assert [link for link in local if not link.startswith("/book/")] == []


def test_source_buttons_lead_to_the_repository(published):
    links = {
        tag["href"] for tag in soup(published, "chapters/article").select("header a[href], .bd-header-article a[href]")
    }
    assert REPOSITORY in links
    assert any(link.startswith(f"{REPOSITORY}/edit/") and link.endswith("/chapters/article.md") for link in links)
    assert any(link.startswith(f"{REPOSITORY}/issues/new") for link in links)


def test_citation_tags_agree_with_the_citation_file(published):
    work = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    found, data = metas(published, "chapters/article"), json_ld(published, "chapters/article")
    assert found["citation_title"] == data["headline"] == "Scales of 2^n & blocks"
    assert found["citation_author"] == "Pandey, Shekhar"
    assert found["citation_inbook_title"] == work["title"]
    assert data["author"] == {"@type": "Person", "name": "Shekhar Pandey"}
    assert found["citation_publication_date"] == data["datePublished"].replace("-", "/")
    assert data["datePublished"] == str(work["date-released"])
    assert data["@type"] == "TechArticle"
    assert data["url"] == found["citation_fulltext_html_url"] == f"{ADDRESS}chapters/article.html"
    assert data["isPartOf"] == {"@type": "WebSite", "name": work["title"], "url": ADDRESS}
    assert json_ld(published, "intro")["@type"] == "WebSite"
    assert "citation_title" not in metas(published, "page")


def test_nothing_names_an_address_while_there_is_none(unpublished):
    html = unpublished.root / "_build/html"
    assert not (html / "sitemap.xml").exists()
    assert not (html / "feed.xml").exists()
    for page in ("index", "intro", "page", "chapters/article", "404", "search"):
        assert canonical(unpublished, page) == []
        assert soup(unpublished, page).select('link[type="application/atom+xml"]') == []
        assert not {"og:url", "og:image", "citation_fulltext_html_url"} & set(metas(unpublished, page))
        assert "colab" not in unpublished.html(page).lower()
    assert "url" not in json_ld(unpublished, "chapters/article")
    assert "example.org" not in unpublished.html("chapters/article")


def test_lost_reader_finds_styles_without_an_address(unpublished):
    links = [tag["href"] for tag in soup(unpublished, "404")(["link", "a"], href=True)]
    local = [link.split("?")[0].split("#")[0] for link in links if not urlsplit(link).scheme]
    assert any(link.startswith("_static/styles/") for link in local)
    assert [link for link in local if link and not (unpublished.root / "_build/html" / link).exists()] == []


@pytest.mark.parametrize("book", ["published", "unpublished"])
def test_index_is_the_landing_page_itself(request, book):
    book = request.getfixturevalue(book)
    assert book.html("index") == book.html("intro")
    page, settings = soup(book, "index"), yaml.safe_load((book.root / "_config.yml").read_text())
    assert page.html["lang"] == "en"
    assert page.title.string == settings["sphinx"]["config"]["ogp_site_name"], "the title of the site, not of its page"
    assert not page("meta", attrs={"http-equiv": True})


@pytest.mark.parametrize(
    "wrong",
    ["example.org/book", "ftp://example.org/", "https://example.org/?book", "https://example.org/#x", "https:///x"],
)
def test_an_address_that_is_none_is_refused(wrong):
    with pytest.raises(ExtensionError, match=re.escape(f"html.baseurl in _config.yml is {wrong!r}; it must be empty")):
        derive_from_address(None, SimpleNamespace(html_baseurl=wrong))


def test_an_address_that_is_none_fails_the_build(tmp_path):
    status, output = make(tmp_path, baseurl="example.org/book").build()
    assert status != 0
    assert "html.baseurl in _config.yml is 'example.org/book'" in output


def written(day: str, first_day: str = "2026-11-20") -> dict:
    """An article's own JSON-LD, as far as feed and sitemap read it."""
    return {"headline": f"Of {day}", "description": "", "datePublished": first_day, "dateModified": day}


CHANGED = {
    "chapters/a": written("2026-11-22"),
    "chapters/b": written("2026-12-01"),
    "chapters/c": written("2026-11-21"),
}


def test_the_feed_has_the_latest_change_first():
    root = feed(ADDRESS, CHANGED, SimpleNamespace(srcdir=ROOT, config=SimpleNamespace(author="Ann Bee")))
    assert root.find("updated").text == "2026-12-01T00:00:00Z"
    entries = [(entry.find("title").text, entry.find("updated").text[:10]) for entry in root.findall("entry")]
    assert entries == [(f"Of {day}", day) for day in ("2026-12-01", "2026-11-22", "2026-11-21")]
    assert {entry.find("published").text for entry in root.findall("entry")} == {"2026-11-20T00:00:00Z"}


def test_the_sitemap_says_when_an_article_has_changed():
    urls = sitemap(ADDRESS, ["chapters/a", "intro"], CHANGED).findall("url")
    assert [(url.find("loc").text, url.findtext("lastmod")) for url in urls] == [
        (f"{ADDRESS}chapters/a.html", "2026-11-22"),
        (f"{ADDRESS}intro.html", None),
    ]


@pytest.mark.parametrize(
    ("last_updated", "day"),
    [("2099-01-02, commit 1234567", "2099-01-02"), ("2001-01-02, commit 1", None), (None, None)],
)
def test_an_article_has_changed_with_its_page_but_not_before_it_was_released(last_updated, day):
    work = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    config = SimpleNamespace(author="Ann Bee", language="en", html_baseurl="")
    env = SimpleNamespace(
        metadata={"chapters/a": {"wordcount": {"minutes": 0}}}, titles={"chapters/a": nodes.title("", "A")}
    )
    about = article(SimpleNamespace(config=config, env=env), "chapters/a", nodes.container(), last_updated, work)
    assert about["dateModified"] == (day or work["date-released"])
    assert about["timeRequired"] == "PT1M"


def test_what_named_an_address_goes_with_it(tmp_path):
    """A sitemap or a feed of an earlier build would go on leading to it."""
    for name in ("feed.xml", "sitemap.xml"):
        (tmp_path / name).write_text("<old/>")
    config = SimpleNamespace(html_baseurl="", root_doc="index", author="Ann Bee")
    app = SimpleNamespace(outdir=tmp_path, srcdir=ROOT, config=config, builder=SimpleNamespace(name="html"))
    app.env = SimpleNamespace(found_docs=set())
    write_site_files(app, ValueError("a build that failed"))
    assert len(list(tmp_path.iterdir())) == 2
    write_site_files(app, None)
    assert list(tmp_path.iterdir()) == []


def test_an_article_opens_in_colab_from_its_repository(published):
    links = [link["href"] for link in soup(published, "chapters/article").select(".run-line a")]
    assert "https://colab.research.google.com/github/example/book/blob/notebooks/chapters/article.ipynb" in links


def test_plain_sphinx_derives_the_same(tmp_path):
    """``jupyter-book config sphinx`` writes a conf.py for sphinx-build; it leaves out where local extensions lie."""
    make(tmp_path, baseurl=ADDRESS)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "_ext"), os.environ.get("PYTHONPATH", "")])
    }
    for command in (
        [Path(sys.executable).with_name("jupyter-book"), "config", "sphinx", "."],
        [sys.executable, "-m", "sphinx", "-W", "-n", "-b", "html", ".", "_build/html"],
    ):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    html = (tmp_path / "_build/html/chapters/article.html").read_text()
    assert f'<link rel="canonical" href="{ADDRESS}chapters/article.html"' in html
    assert (tmp_path / "_build/html/feed.xml").exists()
    assert (tmp_path / "_build/html/sitemap.xml").exists()


def test_citation_file_agrees_with_book_and_package():
    work = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    package = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [f"{who['given-names']} {who['family-names']}" for who in work["authors"]]
    assert names == [config["author"]] == [who["name"] for who in package["authors"]]
    assert str(work["version"]) == package["version"]
    assert work["license"] == [package["license"], "CC-BY-4.0"]
    assert TEXT_LICENSE in config["html"]["extra_footer"]
    assert TEXT_LICENSE in (ROOT / "LICENSE-TEXT").read_text()
    assert work.get("url", "") == config["html"]["baseurl"]
    assert work.get("repository-code", "") == config["repository"]["url"]


def test_a_changed_style_sheet_reaches_every_page(unpublished):
    """Sphinx alone would say "no targets are out of date" and copy nothing."""
    sheet = unpublished.root / "_static/book.css"
    sheet.write_text(sheet.read_text() + ".changed { color: red }\n")
    before = unpublished.html("page")
    assert unpublished.build()[0] == 0
    assert ".changed" in (unpublished.root / "_build/html/_static/book.css").read_text()
    assert unpublished.html("page") != before  # it names the style sheet by its checksum
