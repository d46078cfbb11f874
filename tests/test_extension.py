"""The local Sphinx extension, on a toy book that is really built."""

import re

import pytest
from bs4 import BeautifulSoup
from chipbook import badges, execution
from conftest import ToyBook


def test_execution_key_sees_every_change_that_can_change_a_result(tmp_path):
    package = tmp_path / "kernels/chipmath"
    (package / "recorded").mkdir(parents=True)
    settings = {"torch": "2.13.0", "nb_execution_timeout": "300", "gpus": "[]"}
    files = [package / "quantize.py", package / "ilp.cu", package / "recorded/run.json"]
    files.append(tmp_path / "chapters/data/sweep.csv")
    files[-1].parent.mkdir(parents=True)
    for path in files:
        path.write_text("1")
    keys = [execution.execution_key(tmp_path, settings)]
    for path in files:
        path.write_text("2")
        keys.append(execution.execution_key(tmp_path, settings))
    for name in settings:
        keys.append(execution.execution_key(tmp_path, settings | {name: "other"}))
    (package / "new.hip").write_text("")
    keys.append(execution.execution_key(tmp_path, settings))
    assert len(set(keys)) == len(keys)


def test_execution_key_ignores_pages_and_generated_files(tmp_path):
    (tmp_path / "kernels/chipmath").mkdir(parents=True)
    before = execution.execution_key(tmp_path, {})
    (tmp_path / "intro.md").write_text("prose")
    for generated in ("chipmath/__pycache__/a.pyc", "chipmath.egg-info/PKG-INFO"):
        path = tmp_path / "kernels" / generated
        path.parent.mkdir()
        path.write_text("")
    assert execution.execution_key(tmp_path, {}) == before


def test_versions_name_what_is_installed():
    import numpy
    import torch

    found = execution.versions()
    assert found["numpy"] == numpy.__version__
    assert found["torch"] == torch.__version__


def test_pages_are_executed_only_when_a_result_can_change(toy_book):
    status, output = toy_book.build()
    assert status == 0, output
    assert "executing 1 pages" in output
    assert "page: started" in output
    assert '1.03125<span class="evidence evidence-computed"' in toy_book.html()

    toy_book.add("\nMore prose.\n")
    status, output = toy_book.build()
    assert status == 0
    assert "executing" not in output
    assert "More prose." in toy_book.html()

    (toy_book.root / "kernels/chipmath/reference.py").write_text("BLOCK = 16\n")
    assert "executing 1 pages" in toy_book.build()[1]
    assert "executing" not in toy_book.build()[1]


def test_a_raising_cell_is_red_on_the_second_run_too(toy_book):
    assert toy_book.build()[0] == 0
    toy_book.add('\n```{code-cell} ipython3\nraise ValueError("K = 33")\n```\n')
    for _ in range(2):
        status, output = toy_book.build()
        assert status != 0
        assert "page failed in code cell 2" in output
        assert "K = 33" in output


def test_a_result_whose_display_raises_is_red(toy_book):
    shows = "class Shown:\n    def _repr_html_(self):\n        raise ValueError('no such row')\nShown()"
    toy_book.add(f"\n```{{code-cell}} ipython3\n{shows}\n```\n")
    status, output = toy_book.build()
    assert status != 0
    assert "no such row" in output


def test_a_warning_printed_by_a_cell_is_red(toy_book):
    toy_book.add('\n```{code-cell} ipython3\nimport warnings\nwarnings.warn("deprecated")\n```\n')
    status, output = toy_book.build()
    assert status != 0
    assert "stderr was found" in output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\nA ratio of {evidence}`bare`.\n", "`bare` is not a result of chipmath.evidence"),
        ("\nA ratio of {evidence}`missing`.\n", "No key 'missing'"),
        ("\nA ratio of {evidence}`references::ratio`.\n", "references glues no 'ratio'"),
        ('\n```{code-cell} ipython3\nCited(2.5, ".1f", source="nobody2020")\n```\n', "cites 'nobody2020'"),
        ("\n```{code-cell} ipython3\nMeasured(1.5, live=True)\n```\n", "Measured('1.5') needs recording="),
        ("\nReading time {reading-time}`nowhere`.\n", "no page 'nowhere'"),
    ],
)
def test_evidence_without_backing_fails_the_build(toy_book, text, message):
    toy_book.add(text)
    status, output = toy_book.build()
    assert status != 0
    assert message in output


def test_cited_results_link_to_their_source_and_pages_quote_pages(toy_book):
    toy_book.add('\n```{code-cell} ipython3\nCited(Computed(Table(["x"], [[1]])), source="spec2023")\n```\n')
    intro = toy_book.root / "intro.md"
    intro.write_text("# Intro\n\nA block takes {evidence}`page::ratio` bytes, {reading-time}`page`.\n")
    status, output = toy_book.build()
    assert status == 0, output
    assert 'href="references.html#cite-spec2023"' in toy_book.html()
    assert 'id="cite-spec2023"' in toy_book.html("references")
    assert 'aria-label="cited: Bee, A Title, 2023"' in toy_book.html()
    assert '1.03125<span class="evidence evidence-computed"' in toy_book.html("intro")
    assert "1 min read" in toy_book.html("intro")

    toy_book.page.write_text(toy_book.page.read_text().replace("33 / 32", "33 / 64"))
    assert toy_book.build()[0] == 0
    assert "0.51562" in toy_book.html("intro")


def test_corrections_are_a_table_with_live_values(toy_book):
    entry = '- {claim: "1.02 bytes", right: "{evidence}`ratio`, see [the intro](intro.md)", shown: "this page"}'
    (toy_book.root / "corrections.yml").write_text(f"toy:\n{entry}\n")
    toy_book.add("\n```{corrections} toy\n```\n")
    status, output = toy_book.build()
    assert status == 0, output
    cells = [cell.get_text(" ", strip=True) for cell in BeautifulSoup(toy_book.html(), "html.parser")("td")]
    assert cells == ["1.02 bytes", "1.03125 = , see the intro", "this page"]

    (toy_book.root / "corrections.yml").write_text(f"toy:\n{entry.replace('1.02', '1.03')}\n")
    assert toy_book.build()[0] == 0
    assert "1.03 bytes" in toy_book.html()


def test_inline_scripts_stand_once_and_none_names_a_server(toy_book):
    toy_book.add("\n$$ x^2 $$\n")
    assert toy_book.build()[0] == 0
    soup = BeautifulSoup(toy_book.html(), "html.parser")
    bodies = [script.string for script in soup("script") if script.string]
    assert len(bodies) == len(set(bodies))
    assert not [body for body in bodies if "https://" in body]
    sources = [tag.get("src") or tag.get("href") for tag in soup(["script", "link"])]
    assert any(source and source.startswith("_static/mathjax/tex-svg.js") for source in sources)
    assert not [source for source in sources if source and source.startswith(("http", "//"))]


# Badges

BADGE = '<span class="evidence evidence-measured" data-tip="live: A Card">±</span>'
SPELLINGS = [
    BADGE,
    '<SPAN CLASS="evidence-measured evidence">',
    "<b class=evidence>",
    '<b class="&#101;vidence evidence-cited">',
    '<b class="EVIDENCE-MEASURED">',
    '<b class="evidence\nevidence-measured">',
    '<b class="evidence" class="x">',  # a browser takes the first
    f"<!-->{BADGE}-->",  # a browser ends this comment at its first ">"
    f"<svg><style>{BADGE}</style></svg>",  # and parses this
    f"<script>document.write('{BADGE}')</script>",
]


@pytest.mark.parametrize("html", SPELLINGS)
def test_a_badge_is_found_in_every_spelling_that_a_browser_reads(html):
    assert badges.badges(f"<p>1.5 {html}</p>")


@pytest.mark.parametrize(
    "html", ["<p>The evidence is computed.</p>", '<a class="evident" title="evidence">evidence</a>']
)
def test_prose_about_evidence_is_not_a_badge(html):
    assert not badges.badges(html)


@pytest.fixture(scope="module")
def built_book(tmp_path_factory):
    """A book that was built once; tests put back what they change."""
    book = ToyBook(tmp_path_factory.mktemp("book"))
    (book.root / "typed.html").write_text(f"<p>{BADGE}</p>\n")
    (book.root / "typed.txt").write_text(f"An included 1.5 {BADGE}.\n")
    status, output = book.build()
    assert status == 0, output
    return book


TYPED = {
    "HTML": ('1.5 <SPAN CLASS="evidence-measured evidence">±</SPAN>', "intro.md:6"),
    "entities": ('1.5 <span class="&#101;vidence evidence-measured">±</span>', "intro.md:6"),
    "attributes": ("1.5 [±]{.evidence .evidence-measured}", "intro.md:6"),
    "container": (":::{container} evidence-measured evidence\n1.5\n:::", "intro.md:6"),
    "class option": (":::{note}\n:class: evidence evidence-measured\n1.5\n:::", "intro.md:6"),
    "raw": (f"```{{raw}} html\n{BADGE}\n```", "intro.md:6"),
    "raw file": ("```{raw} html\n:file: typed.html\n```", "intro.md:6"),
    "include": ("```{include} typed.txt\n```", "typed.txt:1"),
    "two halves": (
        '```{raw} html\n<span cla\n```\n\n```{raw} html\nss="evidence evidence-measured">±</span>\n```',
        "intro: a badge is typed by hand",
    ),
}


@pytest.mark.parametrize("way", TYPED)
def test_typed_badges_fail_the_build(built_book, way):
    text, where = TYPED[way]
    intro = built_book.root / "intro.md"
    before = intro.read_text()
    intro.write_text(f"{before}\n\n{text}\n")
    status, output = built_book.build()
    intro.write_text(before)
    assert status != 0
    assert "a badge is typed by hand" in output
    assert where in output


COPY = """
from IPython.display import HTML, display
data, metadata = Computed(1.5)._repr_mimebundle_()
"""
MADE = {
    "assembled HTML": (
        "from IPython.display import HTML\nHTML('<span class=\"evi' + 'dence evidence-measured\">±</span>')",
        "page, code cell 2: a badge is typed by hand",
    ),
    "made-up metadata": (
        COPY + "display({'text/html': data['text/html'], 'text/plain': '1'}, "
        "metadata={'chipmath-evidence': {'kind': 'computed'}}, raw=True)",
        "page, code cell 2: not as a result of chipmath.evidence displays itself",
    ),
    "changed number": (
        COPY
        + "data['text/html'] = data['text/html'].replace('1.5', '2.5')\ndisplay(data, metadata=metadata, raw=True)",
        "page, code cell 2: not as a result of chipmath.evidence displays itself",
    ),
    "Markdown": (
        "from IPython.display import Markdown\nMarkdown('1.5 [±]{.evidence .evidence-measured}')",
        "a badge is typed by hand",
    ),
    "made-up recording": (
        "from chipmath import evidence, recordings\n"
        "import dataclasses\n"
        "evidence.is_recorded = lambda recording: True\n"
        "kept = recordings.newest('mx_tiles')\n"
        "Compiled(1, recording=dataclasses.replace(kept, experiment='my_own'))",
        "page, code cell 2: no compiled recording 'compiled-my_own.json'",
    ),
    "not live": (
        "from chipmath import recordings\n"
        "import dataclasses\n"
        "card = {'name': 'A Card', 'arch': 'sm_90', 'clock_hz_before': None, 'clock_hz_after': None}\n"
        "kept = dataclasses.replace(recordings.newest('mx_tiles'), kind='measured', device=card)\n"
        "Measured(1.5, recording=kept, live=True)",
        "not live: chipmath.bench has not taken this mx_tiles in this process",
    ),
    "live without a GPU": (
        "from chipmath import recordings\n"
        "import dataclasses\n"
        "card = {'name': 'A Card', 'arch': 'sm_90', 'clock_hz_before': None, 'clock_hz_after': None}\n"
        "kept = dataclasses.replace(recordings.newest('mx_tiles'), kind='measured', device=card)\n"
        "recordings.note_taken(kept)\n"
        "Measured(1.5, recording=kept, live=True)",
        "page, code cell 2: a live result of 'mx_tiles', and this machine has no GPU",
    ),
}


@pytest.mark.parametrize("way", MADE)
def test_badges_made_in_a_cell_fail_the_build(built_book, way):
    code, message = MADE[way]
    if way == "live without a GPU" and execution.gpus():
        pytest.skip("this machine has a GPU")
    before = built_book.page.read_text()
    built_book.add(f"\n```{{code-cell}} ipython3\n{code.strip()}\n```\n")
    status, output = built_book.build()
    built_book.page.write_text(before)
    assert status != 0
    assert message in output


@pytest.mark.parametrize(
    "role", ["| {glue}`bare` |", "{Glue}`bare`", "{glue:text}`bare:.2f`", "```{glue:figure} bare\n```"]
)
def test_roles_that_show_a_bare_number_fail_the_build(built_book, role):
    before = built_book.page.read_text()
    built_book.add(f"\n{role}\n")
    status, output = built_book.build()
    built_book.page.write_text(before)
    assert status != 0
    assert re.search(r"page:1\d: \{glue.*\} shows a result bare; use \{evidence\}", output)
