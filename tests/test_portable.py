"""The book in other forms: notebooks that run alone, the Markdown twin of every page, llms.txt."""

import base64
import json
import lzma
import os
import re
import subprocess
import sys
import venv
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import nbformat
import portable
import pytest
from bs4 import BeautifulSoup
from docutils import nodes
from portable.markdown import MarkdownWriter, code, escape, fenced, table
from portable.notebook import names
from sphinx.errors import ExtensionError
from test_book import ARTICLES, HTML, PAGES, soup_of

ROOT = Path(__file__).resolve().parent.parent
ROLE = re.compile(r"\{(evidence|glue|ref|numref|eq|cite|term|doc|reading-time)[^}]*\}`|:::|```\{")


def writer(**numbers) -> MarkdownWriter:
    return MarkdownWriter(lambda address: None if address.startswith("#") else address, str, numbers)


# --- Markdown ---


def test_text_that_looks_like_markdown_is_escaped():
    assert escape("a*b `c` [d] $5 <e> _f_ snake_case") == r"a\*b \`c\` \[d\] \$5 \<e> \_f\_ snake_case"
    assert writer().blocks(nodes.paragraph("", "1. not a list\n# nor a title")) == [
        r"1\. not a list" + "\n\\# nor a title"
    ]


def test_code_keeps_its_backticks():
    assert code("a`b") == "`` a`b ``"
    assert fenced("```\nx\n```", "md").startswith("````md\n")


def test_table_cells_hold_no_bar_or_line_break():
    assert table([["a|b", "c\nd"], ["1"]]) == "| a\\|b | c d |\n|---|---|\n| 1 |  |"


def test_an_unknown_node_fails_instead_of_vanishing():
    class Strange(nodes.General, nodes.Element):
        pass

    with pytest.raises(ExtensionError, match="no Markdown for a <Strange>: 'lost words'"):
        writer().blocks(Strange("", nodes.paragraph("", "lost words")))


def test_values_keep_their_kind_of_evidence_and_scripts_go():
    badge = '<span class="evidence evidence-cited" data-cite="k" aria-label="cited: k">”</span>'
    value = nodes.raw("", f'<span class="evidence-value">28.5 dB{badge}</span>', format="html")
    assert writer().blocks(nodes.paragraph("", "", value)) == ["28.5 dB['cited']"]
    assert writer().blocks(nodes.raw("", "<script>x()</script>", format="html")) == []


def test_equations_and_figures_keep_their_numbers():
    equation = nodes.math_block("", "a = b", ids=["equation-e"])
    assert writer(displaymath={"equation-e": (1, 2)}).blocks(equation) == ["$$\na = b \\tag{1.2}\n$$"]
    figure = nodes.figure("", nodes.caption("", "A finding."), ids=["fig-x"])
    assert writer(figure={"fig-x": (2, 3)}).blocks(figure) == ["**Figure 2.3.** A finding."]


def test_running_text_keeps_its_markup():
    text = nodes.paragraph("", "x")
    text += [nodes.superscript("", "2"), nodes.subscript("", "i"), nodes.math("", " a_b "), nodes.strong("", "c")]
    text += [nodes.emphasis("", "d"), nodes.literal("", "e_f"), nodes.footnote_reference("", "3")]
    text += nodes.reference("", "a page", refuri="page.html")
    assert writer().blocks(text) == ["x<sup>2</sup><sub>i</sub>$a_b$**c***d*`e_f`[3][a page](page.html)"]


def test_lists_count_and_keep_what_belongs_to_an_item():
    items = [nodes.list_item("", nodes.paragraph("", word)) for word in ("one", "two")]
    items[1] += nodes.bullet_list("", nodes.list_item("", nodes.paragraph("", "deep")))
    (text,) = writer().blocks(nodes.enumerated_list("", *items, start=4))
    assert text == "4. one\n5. two\n\n   - deep"


@pytest.mark.parametrize(
    ("hidden", "shown"), [({}, ["```python\ncode\n```", "result"]), ({"hide_mode": "input"}, ["result"])]
)
def test_a_hidden_cell_keeps_its_results(hidden, shown):
    source = nodes.container("", nodes.literal_block("", "code", language="ipython3"), nb_element="cell_code_source")
    output = nodes.container("", nodes.paragraph("", "result"), nb_element="cell_code_output")
    cell = nodes.container("", source, output, nb_element="cell_code", **hidden)
    assert writer().blocks(cell) == shown


# --- the address ---


def toy_app(url: str) -> SimpleNamespace:
    return SimpleNamespace(config=SimpleNamespace(html_theme_options={"repository_url": url}))


@pytest.mark.parametrize("url", ["https://github.com/ann/book", "https://github.com/ann/book.git"])
def test_colab_opens_the_notebook_of_the_repository(url):
    expected = "https://colab.research.google.com/github/ann/book/blob/notebooks/chapters/mxfp8.ipynb"
    assert portable.colab_address(toy_app(url), "chapters/mxfp8") == expected


@pytest.mark.parametrize("url", ["", "https://example.org/ann/book"])
def test_without_a_github_address_there_is_no_colab_link(url):
    assert portable.colab_address(toy_app(url), "chapters/mxfp8") == ""


# --- the built book ---


def article(page: str) -> BeautifulSoup:
    return soup_of(page).find("article")


@pytest.mark.built
@pytest.mark.parametrize("page", PAGES)
def test_twin_holds_every_value_of_its_page_with_its_evidence(page):
    twin = (HTML / f"{page}.md").read_text(encoding="utf-8")
    wanted = Counter()
    for value in article(page).select(".evidence-value"):
        kinds = [badge["class"][1].removeprefix("evidence-") for badge in value.select(".evidence")]
        text = "".join(t for t in value.strings if "evidence" not in t.parent["class"])
        wanted[f"{escape(text)} ({', '.join(dict.fromkeys(kinds))})"] += 1
    assert not {value: count for value, count in wanted.items() if twin.count(value) < count}


KINDS = {"computed": "=", "compiled": "‹›", "measured": "±", "cited": "”"}  # with the signs that notebooks use
KIND_IN_WORDS = re.compile(rf" \((?:{'|'.join(KINDS)}|, )+\)$")


def text_of(element) -> str:
    """What an element of a page says, badges aside."""
    strings = [t for t in element.strings if not any("evidence" in parent.get("class", []) for parent in t.parents)]
    return " ".join("".join(strings).split())


def plain(markdown: str) -> str:
    return " ".join(re.sub(r"\\(.)", r"\1", markdown).split())


def tables_of(markdown: str) -> list[list[list[str]]]:
    """Rows of cells of every table, without the kinds of evidence behind values."""
    found = []
    for block in re.findall(r"(?m)(?:^\|.*\|$\n?)+", markdown):
        head, _, *body = [re.split(r"(?<!\\)\|", line)[1:-1] for line in block.strip().split("\n")]
        found.append([[KIND_IN_WORDS.sub("", plain(cell)) for cell in row] for row in (head, *body)])
    return found


@pytest.mark.built
@pytest.mark.parametrize("page", PAGES)
def test_twin_holds_every_result_table_and_figure_with_what_it_rests_on(page):
    twin = (HTML / f"{page}.md").read_text(encoding="utf-8")
    soup, words = article(page), plain(twin)
    tables = [table for table in soup.select(".result-table table") if len(table("tr")) > 1]
    in_twin = tables_of(twin)
    for table_ in tables:
        rows = [[text_of(cell) for cell in row(["th", "td"])] for row in table_("tr")]
        assert rows in in_twin, rows[:2]
        assert not table_.caption or f"*{text_of(table_.caption)}*" in words
    for picture in soup.select("svg.wide"):
        assert f"*Picture: {' '.join(picture['aria-label'].split())}*" in words
    for figure in soup.select("figcaption"):
        number = figure.select_one(".caption-number")
        assert not number or f"**{number.get_text().strip()}.** " in twin
    labels = Counter()
    for badge in soup.select(".cell_output .evidence-line .evidence"):
        about = badge["aria-label"].partition(": ")[2]
        kind = "computed" if badge["class"][1] == "evidence-computed" else f"{badge.get_text()}: {about}"
        labels[f"({' '.join(kind.split())})"] += 1
    assert not {label: count for label, count in labels.items() if words.count(label) < count}


@pytest.mark.built
@pytest.mark.parametrize("page", ARTICLES)
def test_notebook_prose_holds_every_value_with_the_sign_of_its_evidence(page):
    cells = nbformat.read(HTML / names(page)[0], as_version=4).cells
    prose = plain("\n".join(cell.source for cell in cells if cell.cell_type == "markdown"))
    wanted = Counter()
    for value in article(page).select("p > .evidence-value, li > .evidence-value"):
        signs = "".join(KINDS[badge["class"][1].removeprefix("evidence-")] for badge in value.select(".evidence"))
        wanted[f"{text_of(value)}<sup>{signs}</sup>"] += 1
    assert len(wanted) > 20
    assert not {value: count for value, count in wanted.items() if prose.count(value) < count}
    assert ", ".join(f"{sign} {kind}" for kind, sign in KINDS.items()) in prose.replace("> ", "")


@pytest.mark.built
@pytest.mark.parametrize("page", PAGES)
def test_twin_is_plain_markdown_with_title_and_working_links(page):
    path = HTML / f"{page}.md"
    prose = re.sub(r"(?ms)^```.*?^```$|`[^`\n]+`", "", path.read_text(encoding="utf-8"))
    assert not ROLE.search(prose), ROLE.search(prose)
    assert len(re.findall(r"(?m)^# ", prose)) == 1
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        name, _, place = target.partition("#")
        assert target.startswith(("http", "mailto:")) or (path.parent / name).exists(), target
        if place and not target.startswith("http"):
            assert f'<a id="{place}"></a>' in (path.parent / name).read_text(encoding="utf-8"), target


@pytest.mark.built
def test_twins_lead_to_the_term_and_not_only_to_the_glossary():
    assert "[LDS](../reference/glossary.md#term-LDS)" in (HTML / "chapters/occupancy.md").read_text(encoding="utf-8")


@pytest.mark.built
@pytest.mark.parametrize("page", PAGES)
def test_page_names_its_other_forms_and_they_exist(page):
    soup = soup_of(page)
    forms = [link["href"] for link in soup("link", rel="alternate", href=True) if "atom" not in link.get("type", "")]
    forms += [link["href"] for link in soup.select(".run-line a[download]")]
    menu = [link["href"] for link in soup.select(".dropdown-download-buttons a[href]")]
    assert set(forms) <= set(menu)
    assert f"{Path(page).name}.md" in forms
    assert bool(soup.select_one('.run-line a[href$="reference/api.html"]')) == (page in ARTICLES)
    notebooks = [Path(name).name for name in names(page)] if page in ARTICLES else []
    assert sorted({form for form in forms if form.endswith(".ipynb")}) == sorted(notebooks)
    assert all((HTML / page).with_name(form).exists() for form in forms)


@pytest.mark.built
def test_llms_txt_lists_every_page_once():
    text = (HTML / "llms.txt").read_text(encoding="utf-8")
    assert sorted(re.findall(r"\(([^)]+)\.md\)", text)) == sorted(PAGES)
    assert re.match(r"# .+\n\n> .+\n", text)
    for page in PAGES[1:]:
        about = soup_of(page).find("meta", attrs={"name": "description"})["content"]
        assert re.search(rf"(?m)^- \[.+\]\({page}\.md\): {re.escape(about)}$", text), page


@pytest.mark.built
@pytest.mark.parametrize("page", ARTICLES)
def test_notebooks_are_valid_clean_and_the_same_but_for_outputs(page):
    clean, executed = (nbformat.read(HTML / name, as_version=4) for name in names(page))
    for made in (clean, executed):
        nbformat.validate(made)
    assert [cell.source for cell in clean.cells] == [cell.source for cell in executed.cells]
    code_cells = [cell for cell in clean.cells if cell.cell_type == "code"]
    assert not [cell for cell in code_cells if cell.outputs or cell.execution_count]
    assert sum(bool(cell.outputs) for cell in executed.cells if cell.cell_type == "code") >= 15
    prose = "\n".join(re.sub(r"`[^`\n]+`", "", cell.source) for cell in clean.cells if cell.cell_type == "markdown")
    assert not ROLE.search(prose), ROLE.search(prose)
    assert "This notebook runs by itself" in clean.cells[0].source
    if line := soup_of(page).select_one(".last-updated"):  # none without the history
        assert line.get_text().strip().removeprefix("Last updated on").strip(" .") in clean.cells[0].source
    for number in article(page).select("figcaption .caption-number"):
        assert f"**{number.get_text().strip()}.** " in prose
    executed_page = nbformat.read(ROOT / f"_build/jupyter_execute/{page}.ipynb", as_version=4)
    own = [cell.source for cell in executed_page.cells if cell.cell_type == "code"]
    assert [cell.source for cell in code_cells[1:]] == own
    source = (ROOT / f"{page}.md").read_text(encoding="utf-8")
    assert len(own) == source.count("```{code-cell}")


def packed(page: str) -> dict:
    """What a notebook carries, unpacked."""
    cell = nbformat.read(HTML / names(page)[0], as_version=4).cells[1].source
    text = re.search(r'PACKED = """(.*?)"""', cell, re.DOTALL)[1]
    return json.loads(lzma.decompress(base64.b64decode(text)))


@pytest.mark.built
@pytest.mark.parametrize("page", ARTICLES)
def test_notebooks_carry_the_whole_package_and_their_data(page):
    """Sources for other compilers, too, and the recordings."""
    package = ROOT / "kernels/chipmath"
    files = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    files.remove(package / "py.typed")  # an empty file that only type checkers of other projects read
    carried = packed(page)
    assert carried["package"] == {f"chipmath/{path.relative_to(package)}": path.read_text() for path in files}
    data = sorted((ROOT / page).parent.glob("data/*"))
    assert data
    assert carried["data"] == {f"data/{path.name}": path.read_text() for path in data}


# --- a reader's machine ---

BLOCK = """
import socket, sys
from importlib.machinery import PathFinder

find, connect = PathFinder.find_spec, socket.socket.connect
hidden = {hidden!r}

def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in hidden else find(name, path, target)

def local_only(self, address):
    if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "localhost", "::1"):
        raise OSError(f"no network here: {{address}}")
    return connect(self, address)

PathFinder.find_spec = find_spec
socket.socket.connect = local_only
"""
EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=600).execute()
nbformat.write(notebook, "ran.ipynb")
"""


def strangers_python(folder: Path, *hidden: str) -> Path:
    """Make a Python that has this one's packages but neither the checkout nor ``hidden`` nor a network."""
    venv.create(folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    # A .pth file adds the folders, but the .pth files in them, editable installations, do not run.
    paths = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "parent.pth").write_text("\n".join(paths))
    (packages / "sitecustomize.py").write_text(BLOCK.format(hidden=set(hidden)))
    return folder / "bin/python"


def run_in(folder: Path, python: Path, *arguments, code: str | None = None) -> subprocess.CompletedProcess:
    """``code`` goes through standard input: with the packed package it is longer than Linux lets an argument be."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder.parent), "LANG": "C.UTF-8"}
    environment["OMP_WAIT_POLICY"] = os.environ["OMP_WAIT_POLICY"]
    command = [str(python), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, input=code, capture_output=True, text=True, timeout=600)


def computed(cell) -> list[str]:
    """Return the plain text of a cell's computed results; a notebook's commands name the folder beside it."""
    outputs = [output for output in cell.get("outputs", []) if "chipmath-evidence" in output.get("metadata", {})]
    texts = [o.data["text/plain"] for o in outputs if o.metadata["chipmath-evidence"]["kind"] == "computed"]
    return [re.sub(r"PYTHONPATH=chipmath-\w{8} ", "PYTHONPATH=kernels ", text) for text in texts]


@pytest.mark.built
@pytest.mark.slow
@pytest.mark.parametrize("page", ARTICLES)
def test_notebook_runs_alone_in_an_empty_folder_offline(page, tmp_path):
    python = strangers_python(tmp_path / "python", "myst_nb", "sphinx", "jupyter_book")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert run_in(empty, python, "-c", "import chipmath").returncode != 0
    clean, executed = (HTML / name for name in names(page))
    result = run_in(empty, python, "-c", EXECUTE, clean)
    assert result.returncode == 0, result.stderr[-3000:]
    ran, built = nbformat.read(empty / "ran.ipynb", 4), nbformat.read(executed, 4)
    assert re.search(r"Using chipmath in chipmath-\w{8}/", json.dumps(ran.cells[1].outputs))
    results = [(computed(here), computed(there)) for here, there in zip(ran.cells, built.cells)]
    assert sum(bool(here) for here, _ in results) >= 10
    figures = [o for cell in ran.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert figures
    for here, there in results:
        assert here == there


@pytest.mark.built
def test_notebook_names_what_a_kernel_lacks(tmp_path):
    python = strangers_python(tmp_path / "python", "torch")
    (tmp_path / "empty").mkdir()
    cell = nbformat.read(HTML / names(ARTICLES[0])[0], as_version=4).cells[1].source
    result = run_in(tmp_path / "empty", python, "-", code=cell)
    assert result.returncode != 0
    assert "this notebook also needs torch: pip install torch" in result.stderr
    assert not list((tmp_path / "empty").iterdir())


@pytest.mark.built
def test_all_cells_can_run_again_in_the_same_kernel(tmp_path):
    python = strangers_python(tmp_path / "python", "myst_nb")
    (tmp_path / "empty").mkdir()
    cell = nbformat.read(HTML / names(ARTICLES[0])[0], as_version=4).cells[1].source
    result = run_in(
        tmp_path / "empty", python, "-", code=f"{cell}\n{cell}\nfrom myst_nb import glue\nprint(glue('a', 1))"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("None\n")


@pytest.mark.built
def test_unpacking_keeps_what_a_reader_changed(tmp_path):
    python = strangers_python(tmp_path / "python")
    (tmp_path / "empty").mkdir()
    cell = nbformat.read(HTML / names(ARTICLES[0])[0], as_version=4).cells[1].source
    assert run_in(tmp_path / "empty", python, "-", code=cell).returncode == 0
    data = packed(ARTICLES[0])["data"]
    assert {f"data/{path.name}": path.read_text() for path in (tmp_path / "empty/data").iterdir()} == data
    (changed,) = (tmp_path / "empty").glob("chipmath-*/chipmath/__init__.py")
    changed.write_text("mine = 1\n")
    result = run_in(tmp_path / "empty", python, "-", code=cell + "\nprint(chipmath.mine)")
    assert result.stdout.endswith("1\n"), result.stderr


@pytest.mark.built
def test_another_chipmath_that_is_loaded_already_is_told(tmp_path):
    """Its results would stand where those of the article's own code are expected."""
    python = strangers_python(tmp_path / "python")
    (tmp_path / "empty/chipmath").mkdir(parents=True)
    (tmp_path / "empty/chipmath/__init__.py").write_text("")
    cell = nbformat.read(HTML / names(ARTICLES[0])[0], as_version=4).cells[1].source
    result = run_in(tmp_path / "empty", python, "-", code=f"import chipmath\n{cell}")
    assert result.returncode != 0
    assert "ImportError: another chipmath was imported before, " in result.stderr
