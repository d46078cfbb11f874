"""The built book, page by page: what every page must have and must not load."""

import hashlib
import re
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from bs4 import BeautifulSoup
from chipbook import badges, execution
from chipmath.recordings import RECORDED, load
from pybtex.database import parse_file

ROOT = Path(__file__).resolve().parent.parent
HTML = ROOT / "_build/html"
KINDS = {"computed", "compiled", "measured", "cited"}

pytestmark = pytest.mark.built


def toc_pages() -> list[str]:
    """Return every page of the table of contents, the landing page first."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    return [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]


PAGES = toc_pages()
ARTICLES = [page for page in PAGES if page.startswith("chapters/")]


def own_soup(page: str) -> BeautifulSoup:
    """A page of the built book, parsed anew: for a test that takes elements out of it."""
    path = HTML / f"{page}.html"
    assert path.exists(), f"{path.relative_to(ROOT)} is missing: build the book first (make book)"
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


soup_of = cache(own_soup)  # to read only: every test that asks for a page gets the same


@pytest.fixture(scope="module")
def soups():
    return {page: soup_of(page) for page in PAGES}


@pytest.mark.parametrize("page", PAGES)
def test_page_loads_nothing_from_outside(soups, page):
    loaded = [tag.get("src") or tag.get("href") for tag in soups[page](["script", "img", "iframe", "source"])]
    loaded += [tag.get("href") for tag in soups[page]("link") if "canonical" not in (tag.get("rel") or [])]
    assert not [address for address in loaded if address and re.match(r"(https?:)?//", address)]


@pytest.mark.parametrize("page", PAGES)
def test_page_has_one_title_and_a_description(soups, page):
    soup = soups[page]
    assert len(soup.select("article h1")) == 1
    descriptions = soup("meta", attrs={"name": "description"})
    assert len(descriptions) == 1
    assert 40 <= len(descriptions[0]["content"]) <= 200


@pytest.mark.parametrize("page", PAGES)
def test_ids_are_unique(soups, page):
    ids = [tag["id"] for tag in soups[page](id=True)]
    assert sorted(ids) == sorted(set(ids))


@pytest.mark.parametrize("page", PAGES)
def test_links_inside_the_book_lead_somewhere(soups, page):
    base = (HTML / f"{page}.html").parent
    for tag in soups[page].select("article a[href], nav a[href]"):
        link = urlsplit(tag["href"])
        if link.scheme or tag["href"] == "#":
            continue
        target = (base / unquote(link.path)).resolve() if link.path else HTML / f"{page}.html"
        assert target.exists(), tag["href"]
        if link.fragment and target.suffix == ".html":
            assert f'id="{unquote(link.fragment)}"' in target.read_text(encoding="utf-8"), tag["href"]


@pytest.mark.parametrize("page", PAGES)
def test_pictures_are_described(soups, page):
    for image in soups[page].select("article img"):
        assert image.get("alt", "").strip(), image
    for svg in soups[page].select("article svg"):
        described = svg.get("aria-label") or svg.find("title")
        assert svg.get("aria-hidden") == "true" or described, str(svg)[:200]


@pytest.mark.parametrize("page", ARTICLES)
def test_every_result_table_and_figure_has_a_badge(soups, page):
    outputs = [
        output
        for output in soups[page].select("div.cell_output")
        if output.find("table") or output.find("svg") or output.find("img")
    ]
    assert outputs
    for output in outputs:
        assert output.select(".evidence"), output.get_text(" ", strip=True)[:120]


@pytest.mark.parametrize("page", PAGES)
def test_every_badge_is_one_of_four_kinds_and_readable(soups, page):
    for badge in soups[page].select(".evidence"):
        (kind,) = [name.removeprefix("evidence-") for name in badge["class"] if name != "evidence"]
        assert kind in KINDS
        assert badge["aria-label"].startswith(f"{kind}: ")
        assert badge.name == "a" or badge["tabindex"] == "0"


@pytest.mark.parametrize("page", PAGES)
def test_cited_badges_name_a_bibliography_key(soups, page):
    keys = set(parse_file(str(ROOT / "references.bib")).entries)
    for badge in soups[page].select(".evidence-cited"):
        assert badge["data-cite"] in keys
        assert badge["href"].endswith(f"#cite-{badge['data-cite'].lower()}")


@pytest.mark.parametrize("page", PAGES)
def test_compiled_measured_and_long_computed_badges_name_a_committed_recording(soups, page):
    """A live result has none: it was measured when this page was built, on the machine that its badge names."""
    kinds = {"evidence-compiled": "compiled", "evidence-measured": "measured", "evidence-computed": "computed"}
    for badge in soups[page].select(".evidence-compiled, .evidence-measured, .evidence-computed"):
        if "evidence-computed" in badge["class"] and "data-recording" not in badge.attrs:
            assert badge["data-tip"] == "arithmetic run when this page was built"
            continue
        (kind,) = [kinds[name] for name in badge["class"] if name in kinds]
        if "data-live" in badge.attrs:
            assert kind == "measured"
            continue
        recording = load(RECORDED / badge["data-recording"])
        assert recording.kind == kind
        assert recording.provenance() in badge["data-tip"]


@pytest.mark.parametrize("page", ARTICLES)
def test_article_has_at_least_fifteen_executed_outputs(soups, page):
    assert len(soups[page].select("div.cell_output")) >= 15


@pytest.mark.parametrize("page", ARTICLES)
def test_figures_are_numbered_and_captioned(soups, page):
    for output in soups[page].select("div.cell_output"):
        if output.find("svg"):
            caption = output.find("figcaption") or output.find_parent("figure")
            assert caption, output.get_text(" ", strip=True)[:120]
    assert soups[page].select("figcaption .caption-number")


@pytest.mark.parametrize("page", PAGES)
def test_no_role_or_template_is_left_raw(soups, page):
    article = own_soup(page).find("article")
    for code in [*article(["pre", "code", "script", "style"]), *article.select("dl.py")]:
        code.extract()
    text = article.get_text(" ")
    assert not re.search(r"\{(evidence|glue|ref|numref|cite|reading-time)[^}]*\}`|\bnan\b|\bNone\b(?! of\b)", text)


def test_mathjax_is_the_published_bundle():
    """SHA-256 of es5/tex-svg.js in the npm package mathjax 3.2.2, whose licence lies beside it."""
    bundle = ROOT / "_vendor/mathjax/tex-svg.js"
    digest = hashlib.sha256(bundle.read_bytes()).hexdigest()
    assert digest == "d4295dc33744836935c1399feece5159577b34c5c8ffb9f1c6324cd82e03a882"
    assert "Apache License" in bundle.with_name("LICENSE").read_text()


def test_canonical_links_wait_for_an_address(soups):
    """The address is one value; while it is empty no page claims one."""
    baseurl = yaml.safe_load((ROOT / "_config.yml").read_text())["html"]["baseurl"]
    links = [soup.find("link", rel="canonical") for soup in soups.values()]
    assert all(link["href"].startswith(baseurl) for link in links) if baseurl else not any(links)


def test_profile_states_the_seeds_figures(soups):
    """The author's own figures, exactly as stated."""
    text = " ".join(soups[page].find("article").get_text(" ") for page in PAGES if page.startswith("profile/"))
    figures = ["96%", "1K GPUs", "2.77×", "25–27%", "~40%", "0.42", "1.5 hours to 30 seconds", "~3M", "80% less"]
    figures += ["12 peer groups", "gpt-oss-120B/20B", "CodeLlama-13B", "2.5×", "four limiters", "Jun 2026", "May 2026"]
    assert not [figure for figure in figures if figure not in text]
    assert not re.search(r"@|\+\d|https?://|\b(19|20)\d\d\b(?<!2026)", text)


@pytest.mark.parametrize("page", PAGES)
def test_nothing_else_looks_like_a_badge(soups, page):
    """In any spelling that a browser reads, hidden in comments and scripts too."""
    known = {"evidence", "evidence-value", "evidence-line", *(f"evidence-{kind}" for kind in KINDS)}
    for tag in badges.badges(str(soups[page].find("article"))):
        names = [name for name in tag["class"] if badges.is_badge_class(name)]
        assert set(names) <= known, tag
        assert names[0] != "evidence" or names[1:] in [[f"evidence-{kind}"] for kind in KINDS], tag
        assert len(names) == 1 or names[0] == "evidence", tag
    live = soups[page].select("[data-live]")
    assert execution.gpus() or not live
