"""The local Sphinx extension, on a toy book that is really built."""

import chipbook
import pytest
from bs4 import BeautifulSoup
from sphinx.errors import ExtensionError


def test_execution_key_sees_every_change_that_can_change_a_result(tmp_path):
    package = tmp_path / "kernels/chipmath"
    (package / "recorded").mkdir(parents=True)
    settings = {"torch": "2.13.0", "nb_execution_timeout": "300", "gpus": "[]"}
    files = [package / "quantize.py", package / "ilp.cu", package / "recorded/run.json"]
    files.append(tmp_path / "chapters/data/sweep.csv")
    files[-1].parent.mkdir(parents=True)
    for path in files:
        path.write_text("1")
    keys = [chipbook.execution_key(tmp_path, settings)]
    for path in files:
        path.write_text("2")
        keys.append(chipbook.execution_key(tmp_path, settings))
    for name in settings:
        keys.append(chipbook.execution_key(tmp_path, settings | {name: "other"}))
    (package / "new.hip").write_text("")
    keys.append(chipbook.execution_key(tmp_path, settings))
    assert len(set(keys)) == len(keys)


def test_execution_key_ignores_pages_and_generated_files(tmp_path):
    (tmp_path / "kernels/chipmath").mkdir(parents=True)
    before = chipbook.execution_key(tmp_path, {})
    (tmp_path / "intro.md").write_text("prose")
    for generated in ("chipmath/__pycache__/a.pyc", "chipmath.egg-info/PKG-INFO"):
        path = tmp_path / "kernels" / generated
        path.parent.mkdir()
        path.write_text("")
    assert chipbook.execution_key(tmp_path, {}) == before


def test_versions_name_what_is_installed():
    import numpy
    import torch

    found = chipbook.versions()
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
        ('\n<span class="evidence evidence-measured">±</span>\n', "a badge is typed by hand"),
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


TYPED = ["<b class='evidence'>x</b>", '<i class="evidence evidence-cited">']
TYPED += ["data-cite=x", "data-recording=x", "data-live=x"]


@pytest.mark.parametrize("typed", TYPED)
def test_typed_badges_are_refused(typed):
    with pytest.raises(ExtensionError, match="intro:2: a badge is typed by hand"):
        chipbook.refuse_typed_badges(None, "intro", ["first line\n" + typed])


@pytest.mark.parametrize("role", ["| {glue}`bare` |", "{glue:text}`bare:.2f`", "```{glue:figure} bare\n```"])
def test_roles_that_show_a_bare_number_are_refused(role):
    with pytest.raises(ExtensionError, match=r"intro:2: \{glue.*\} shows a result bare"):
        chipbook.refuse_typed_badges(None, "intro", ["first line\n" + role])


def test_prose_about_evidence_is_not_a_badge():
    chipbook.refuse_typed_badges(None, "intro", ["The evidence is computed; a class of evidence."])
