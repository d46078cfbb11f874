"""The reference part: API page, glossary and its tips, status, corrections."""

import re
from datetime import datetime, timedelta, timezone

import pytest
import yaml
from backmatter.api import field_comments, restructured
from backmatter.corrections import listed, quoted_from
from bs4 import BeautifulSoup
from chipmath.recordings import recorded
from test_book import ARTICLES, PAGES, ROOT, own_soup, soup_of

# DESIGN's contracts: what pages, readers and outside checks rely on, and so must find described.
CONTRACTS = [
    "formats.ElementFormat",
    "formats.ElementFormat.decode",
    "formats.ElementFormat.encode",
    "quantize.quantize",
    "quantize.MXTensor",
    "quantize.MXTensor.dequantize",
    "quantize.sqnr_db",
    "quantize.to_blocked",
    "quantize_cpu.quantize",
    "matmul.matmul",
    "matmul.grouped_matmul",
    "training.recipes.linear",
    "training.probes.breaking_point",
    "training.amdahl.accelerated_share",
    "training.run.train_all",
    "occupancy.occupancy",
    "occupancy.Occupancy",
    "occupancy.Occupancy.groups_per_unit",
    "occupancy.Occupancy.waves_per_unit",
    "occupancy.Occupancy.fraction",
    "occupancy.Occupancy.limiters",
    "occupancy.occupancy_table",
    "crosscompile.compile_triton",
    "crosscompile.compile_hip",
    "crosscompile.compile_cuda",
    "crosscompile.Binary",
    "crosscompile.Binary.instructions",
    "crosscompile.Binary.occupancy",
    "bench.main",
    "noise.expected_sqnr_db",
    "ilp.expected_fraction",
    "gpu.gpu",
    "gpu.driver_occupancy",
    "recordings.Recording",
    "recordings.newest",
    "evidence.Computed",
    "evidence.Compiled",
    "evidence.Measured",
    "evidence.Cited",
    "evidence.Table",
    "measurements.measure",
    "measurements.compiled",
    "figures.draw",
    "figures.lines",
]


# --- docstrings ---


def test_fields_that_a_docstring_lists_have_an_entry_each():
    made = restructured(["name   as in the standard", "bits   of a code"], {"name"})
    assert made[:4] == ["", ".. attribute:: name", "", "    as in the standard"]
    assert "``bits``" in made


@pytest.mark.built
def test_api_page_describes_a_listed_field_once_and_with_its_text():
    page = soup_of("reference/api")
    entries = page.find_all(id="chipmath.occupancy.Occupancy.limits")
    assert len(entries) == 1
    assert "groups per unit that each limiter alone would admit" in entries[0].find_next("dd").text
    names = [code.text for code in page.find(id="chipmath.evidence.Table").find_next("dd").select("dt")]
    assert len([name for name in names if "caption" in name]) == 1


def test_columns_of_a_docstring_become_definitions():
    made = restructured(["x        float32, (M, K);", "         any strides", "returns  *codes*"])
    assert made == ["", "``x``", "    float32, (M, K);", "    any strides", "", "``returns``", r"    \*codes\*", ""]


def test_markup_that_a_docstring_does_not_mean_is_escaped():
    assert restructured(['For "*bf16", |x| and words_ use ``2**n`` or `scale`.']) == [
        r'For "\*bf16", \|x\| and words\_ use ``2**n`` or ``scale``.',
        "",
    ]


def test_comments_behind_fields_describe_them():
    source = "class A:\n    bits: int = 8  # of a code\n    name: str\n\n\nclass B:\n    bits: int  # of B\n"
    assert field_comments(source) == {("A", "bits"): ["of a code", ""], ("B", "bits"): ["of B", ""]}


def test_bullets_and_code_blocks_stay():
    made = restructured(["- one", "  more", "- two", "", "Like this::", "", "    a = b ** 2  # c", ""])
    assert made == ["", "- one", "  more", "", "- two", "", "Like this::", "", "    a = b ** 2  # c", ""]


def test_a_formula_set_apart_keeps_its_lines():
    made = restructured(["With x = waves,", "", "    rate = min(1, x)", "    y    = 2 x", "", "so *all* lie on it."])
    shown = [".. code-block:: text", "", "    rate = min(1, x)", "    y    = 2 x", ""]
    assert made == ["With x = waves,", "", *shown, r"so \*all\* lie on it.", ""]


@pytest.mark.built
@pytest.mark.parametrize("name", CONTRACTS)
def test_api_page_describes_the_contracts(name):
    entry = soup_of("reference/api").find(id=f"chipmath.{name}")
    assert entry, name
    about = entry.find_next_sibling("dd").get_text(" ", strip=True)
    assert about or "fraction" in name or "per_unit" in name  # fields whose name says it


@pytest.mark.built
def test_api_page_has_no_leftover_markup():
    for code in (soup := own_soup("reference/api").find("article"))(["pre", "code"]):
        code.extract()
    text = soup.get_text(" ")
    assert not re.search(r"``|:\w+:`|~chipmath|<object|System Message", text)


# --- glossary ---


@pytest.mark.built
def test_terms_have_one_definition_each_in_a_sentence_or_two():
    terms = soup_of("reference/glossary").select("dl.glossary dt")
    names = [term.find(string=True).strip() for term in terms]
    assert len(names) == len(set(names)) >= 25
    for definition in soup_of("reference/glossary").select("dl.glossary dd"):
        assert 15 <= len(definition.get_text()) <= 260, definition.get_text()


@pytest.mark.built
@pytest.mark.parametrize("page", ARTICLES)
def test_terms_in_articles_carry_the_glossarys_definition(page):
    source = (ROOT / f"{page}.md").read_text(encoding="utf-8")
    links = soup_of(page).select("a.term")
    assert len(links) == source.count("{term}")
    glossary = own_soup("reference/glossary")
    for badge in glossary.select(".evidence, .headerlink"):
        badge.extract()
    for link in links:
        term = glossary.find(id=link["href"].partition("#")[2])
        definition = term.find_next_sibling("dd")
        assert link["data-tip"] == " ".join(definition.get_text().split())


@pytest.mark.built
@pytest.mark.parametrize("page", ARTICLES)
def test_names_of_the_package_lead_to_the_api_page(page):
    """Sphinx leaves a name that it does not find as it is, without a warning."""
    source = (ROOT / f"{page}.md").read_text(encoding="utf-8")
    links = [link for link in soup_of(page).select('article a[href*="reference/api.html#"]') if link.find("code")]
    assert len(links) == len(re.findall(r"\{py:\w+\}`", source))


# --- status ---


@pytest.mark.built
def test_status_lists_every_executed_page_and_every_recording():
    pages, *_, recordings = soup_of("reference/status").select("article table")
    executed = [page for page in PAGES if "{code-cell}" in (ROOT / f"{page}.md").read_text(encoding="utf-8")]
    rows = [[cell.get_text(" ", strip=True) for cell in row("td")] for row in pages("tr")[1:]]
    assert len(rows) == len(executed)
    assert all(
        re.fullmatch(r"20\d\d-\d\d-\d\d \d\d:\d\d", moment) and float(seconds) > 0 for _, moment, seconds in rows
    )
    lines = [[cell.get_text() for cell in row(["th", "td"])] for row in recordings("tr")[1:]]
    shown = {(line[0], line[4]) for line in lines}
    assert shown == {(recording.experiment, recording.commit[:7]) for recording in recorded()}


def test_status_tells_when_and_how_long_pages_ran_and_is_told_again(toy_book, monkeypatch):
    """Seconds and UTC, wherever the build runs; and after another run, though its own page has not changed."""
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    toc, status_page = toy_book.root / "_toc.yml", toy_book.root / "state.md"
    toc.write_text(f"{toc.read_text()}- file: state\n")
    status_page.write_text("# State\n\n```{executions}\n```\n")
    for wait in (1.5, 4):
        toy_book.add(f"\n```{{code-cell}} ipython3\nimport time\ntime.sleep({wait})\n```\n")
        status, output = toy_book.build()
        assert status == 0, output
        (row,) = BeautifulSoup(toy_book.html("state"), "html.parser").select("tbody tr")
        name, moment, seconds = (cell.get_text(strip=True) for cell in row("td"))
        assert name == "A page"
        assert abs(datetime.now(timezone.utc) - datetime.fromisoformat(f"{moment}+00:00")) < timedelta(minutes=9)
        assert wait < float(seconds) < 200


# --- corrections ---


def test_results_are_quoted_from_the_article():
    quoted = "{evidence}`../chapters/mxfp8::b64` dB, as {evidence}`../chapters/x::y`"
    assert quoted_from("chapters/mxfp8", "{evidence}`b64` dB, as {evidence}`../chapters/x::y`") == quoted


def test_rows_become_a_list_table():
    made = listed("A caption", ("a", "b"), [("1", "2")])
    assert (made[0], made[3:]) == (":::{list-table} A caption", ["* - a", "  - b", "* - 1", "  - 2", ":::"])


@pytest.mark.built
def test_every_correction_is_on_the_page():
    entries = yaml.safe_load((ROOT / "corrections.yml").read_text(encoding="utf-8"))
    rows = soup_of("reference/corrections").select("article tbody tr")
    assert len(rows) == sum(map(len, entries.values()))
    dates = [row.td.get_text() for row in rows[: len(entries["changes"])]]
    assert dates == sorted((str(entry["date"]) for entry in entries["changes"]), reverse=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("- {date: yesterday, page: page, was: a, now: b}", "needs a date"),
        ("- {date: 2026-11-24, page: page, was: a}", "needs a date and page, was, now"),
        ("- {date: 2026-11-24, page: nowhere, was: a, now: b}", "there is no page 'nowhere'"),
    ],
)
def test_a_change_without_date_or_page_fails_the_build(toy_book, changes, message):
    (toy_book.root / "corrections.yml").write_text(f"changes:\n{changes}\n")
    toy_book.add("\n```{changes}\n```\n")
    status, output = toy_book.build()
    assert status != 0
    assert message in output


def test_a_changed_definition_reaches_the_pages_that_use_it(toy_book):
    (toy_book.root / "reference").mkdir()
    glossary = toy_book.root / "reference/glossary.md"
    glossary.write_text("# Glossary\n\n:::{glossary}\nblock\n  Thirty-two values.\n:::\n")
    toc = toy_book.root / "_toc.yml"
    toc.write_text(toc.read_text() + "- file: reference/glossary\n")
    toy_book.add("\nA {term}`block`.\n")
    status, output = toy_book.build()
    assert status == 0, output
    assert 'data-tip="Thirty-two values."' in toy_book.html()
    glossary.write_text(glossary.read_text().replace("Thirty-two", "Sixteen"))
    assert toy_book.build()[0] == 0
    assert 'data-tip="Sixteen values."' in toy_book.html()
