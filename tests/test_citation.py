"""How to cite the book: BibTeX that a parser reads, from CITATION.cff and the titles of the pages."""

import json

import pytest
from book_citation import bibtex, citation_file
from pybtex.database import parse_string
from test_book import ARTICLES, HTML, ROOT, soup_of


def test_an_entry_holds_what_the_citation_file_says():
    work = citation_file(ROOT)
    entry = parse_string(bibtex(work, ""), "bibtex").entries["pandey2026book"]
    assert [str(person) for person in entry.persons["author"]] == ["Pandey, Shekhar"]
    assert entry.fields["title"] == f"{{{work['title']}}}"
    assert entry.fields["year"] == str(work["date-released"])[:4]
    assert str(work["version"]) in entry.fields["note"]
    assert "url" not in entry.fields


def test_an_article_stands_in_the_book_at_its_address():
    text = bibtex(citation_file(ROOT), "https://example.org/a.html", "chapters/a", "50 % of A & B_c")
    entry = parse_string(text, "bibtex").entries["pandey2026a"]
    assert (entry.type, entry.fields["url"]) == ("incollection", "https://example.org/a.html")
    assert entry.fields["title"] == r"{50 \% of A \& B\_c}"


@pytest.mark.built
def test_the_page_cites_the_book_and_every_article_by_its_title():
    (block,) = soup_of("references").select("div.highlight-bibtex pre")
    entries = parse_string(block.get_text(), "bibtex").entries
    titles = [soup_of(page).select_one("article h1").find_all(string=True, recursive=False) for page in ARTICLES]
    plain = {"".join(title).strip() for title in titles}
    assert {entry.fields["title"].strip("{}") for entry in entries.values() if entry.type == "incollection"} == plain
    assert len(entries) == len(ARTICLES) + 1
    assert block.get_text().strip() in (HTML / "references.md").read_text(encoding="utf-8")


@pytest.mark.built
def test_sources_stand_in_the_order_of_the_alphabet():
    sources = [source.select_one("p").get_text(" ", strip=True) for source in soup_of("references").select(".citation")]
    companies = [source.partition(".")[0] for source in sources if source.startswith(("AMD-AGI", "NVIDIA", "Triton"))]
    assert len(companies) > 5
    assert companies == sorted(companies)
    persons = [sources.index(next(s for s in sources if name in s)) for name in ("Chen", "Mishra", "Rouhani", "Volkov")]
    nvidia = next(place for place, source in enumerate(sources) if source.startswith("NVIDIA"))
    assert persons == sorted(persons)
    assert persons[1] < nvidia < persons[2]


@pytest.mark.built
@pytest.mark.parametrize("page", [*ARTICLES, "reference/corrections"])
def test_different_sources_are_cited_by_different_words(page):
    words = {}
    for link in soup_of(page).select('a[href*="#cite-"]:not(.evidence)'):
        words.setdefault(link.get_text(" ", strip=True), set()).add(link["href"].partition("#")[2])
    assert {label: keys for label, keys in words.items() if len(keys) > 1} == {}


@pytest.mark.built
def test_a_notebook_lists_its_sources_as_its_sentences_name_them():
    cells = json.loads((HTML / "chapters/mxfp8.ipynb").read_text(encoding="utf-8"))["cells"]
    sources = "".join(cells[-1]["source"])
    assert sources.startswith("## Sources")
    assert "Microscaling Data Formats for Deep Learning. 2023b." in sources
    assert any("Rouhani *et al.*, 2023b" in "".join(cell["source"]) for cell in cells)
