"""How to cite the book: BibTeX that a parser reads, from CITATION.cff and the titles of the pages."""

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
