"""The local Sphinx extension, on a toy book that is really built."""

import asyncio
import hashlib
import os
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import chipbook
import nbformat
import pytest
from bs4 import BeautifulSoup
from chipbook import badges, execution, head
from chipmath.recordings import newest
from conftest import ROOT, ToyBook
from docutils import nodes
from nbclient.exceptions import CellTimeoutError, DeadKernelError
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
    keys = [execution.execution_key(tmp_path, settings)]
    for path in files:
        path.write_text("2")
        keys.append(execution.execution_key(tmp_path, settings))
    for name in settings:
        keys.append(execution.execution_key(tmp_path, settings | {name: "other"}))
    for name in ("new.hip", "newer.hip"):  # the same contents by another name
        (package / name).write_text("")
        keys.append(execution.execution_key(tmp_path, settings))
        (package / name).unlink()
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


@pytest.mark.parametrize("name", ["torch", "triton", "triton-rocm", "pytorch-triton-rocm", "numpy", "matplotlib"])
def test_versions_name_what_is_installed(monkeypatch, name):
    """Of every package that computes or draws a result, by the names that torch's builds give to Triton."""
    monkeypatch.setattr(execution.metadata, "version", {name: "1.2.3"}.__getitem__)
    monkeypatch.setattr(execution.metadata, "PackageNotFoundError", KeyError)
    assert execution.versions().items() >= {name: "1.2.3"}.items()
    assert execution.versions().keys() == {"python", "machine", name}


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
        ("\n```{code-cell} ipython3\nMeasured(1.5, live=True)\n```\n", "required keyword-only argument: 'recording'"),
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


def test_reading_time_is_that_of_the_main_line(toy_book):
    intro = toy_book.root / "intro.md"
    folded = f":::{{dropdown}} A derivation\n{800 * 'word '}\n:::\n"
    intro.write_text(f"# Intro\n\n{{reading-time}}`intro`, {{doc}}`page`\n\n{600 * 'word '}\n\n{folded}")
    status, output = toy_book.build()
    assert status == 0, output
    assert "3 min read" in toy_book.html("intro")


def test_corrections_are_a_table_with_live_values(toy_book):
    entry = '- {claim: "1.02 bytes", right: "{evidence}`ratio`, see [the intro](intro.md)", shown: "this page"}'
    other = "- {claim: b, right: c, shown: d}"
    (toy_book.root / "corrections.yml").write_text(f"toy:\n{entry}\n{other}\n")
    toy_book.add("\n```{corrections} toy\n```\n")
    status, output = toy_book.build()
    assert status == 0, output
    cells = [cell.get_text(" ", strip=True) for cell in BeautifulSoup(toy_book.html(), "html.parser")("td")]
    assert cells == ["1.02 bytes", "1.03125 = , see the intro", "this page", "b", "c", "d"]

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


# Execution, step by step


@pytest.fixture
def app(tmp_path, monkeypatch):
    """What the execution's handlers see of Sphinx: a book of nothing, and the settings of MyST-NB."""
    monkeypatch.setenv("PYTHONPATH", "")
    settings = {"nb_execution_mode": "cache", "nb_execution_timeout": 300, "nb_execution_cache_path": ""}
    settings["executed_first"] = ["c"]

    class Config(dict):
        __getattr__, __setattr__ = dict.__getitem__, dict.__setitem__
        values = settings

    return SimpleNamespace(srcdir=tmp_path, outdir=tmp_path / "_build/html", config=Config(settings))


def cache_of(app) -> Path:
    execution.set_execution_cache(app, app.config)
    return Path(app.config["nb_execution_cache_path"])


@pytest.mark.parametrize("what", ["versions", "gpus"])
def test_other_versions_and_other_gpus_have_another_cache(app, monkeypatch, what):
    before, found = cache_of(app), getattr(execution, what)()
    assert cache_of(app) == before
    changed = {**found, "torch": "0.0"} if what == "versions" else [*found, "Model: A Card"]
    monkeypatch.setattr(execution, what, lambda: changed)
    assert cache_of(app) != before


@pytest.mark.parametrize("name", ["CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"])
def test_hidden_devices_have_another_cache(app, monkeypatch, name):
    monkeypatch.setenv(name, "0")
    before = cache_of(app)
    monkeypatch.setenv(name, "1")
    assert cache_of(app) != before


def test_other_execution_settings_have_another_cache(app):
    before = cache_of(app)
    app.config["nb_execution_timeout"] = 60
    assert cache_of(app) != before


def test_pages_import_the_package_beside_them(app, monkeypatch):
    """And not one that is installed, or that the reader's own path names first."""
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    cache_of(app)
    assert os.environ["PYTHONPATH"].split(os.pathsep) == [str(app.srcdir / "kernels"), "/elsewhere"]


def test_the_caches_used_last_are_kept(app, monkeypatch):
    used = []
    for number in (0, 1, 2, 3, 0, 4):
        monkeypatch.setattr(execution, "versions", lambda number=number: {"torch": str(number)})
        cache = cache_of(app)
        if cache not in used:
            os.utime(cache, (len(used), len(used)))  # long ago, one after the other; using one again makes it new
        used.append(cache)
    kept = {path for path in used if path.exists()}
    assert kept == {used[0], used[2], used[3], used[5]}, "the second was used longest ago"


@pytest.mark.parametrize(("gpus", "at_once"), [([], 2), (["Model: A Card"], 1)])
def test_pages_run_one_after_the_other_where_a_gpu_is(app, monkeypatch, gpus, at_once):
    asked = []

    async def note(pages, at_once, timeout):
        asked.append(([page.docname for page in pages], at_once))

    monkeypatch.setattr(execution, "gpus", lambda: gpus)
    monkeypatch.setattr(execution.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(execution, "_execute_all", note)
    monkeypatch.setattr(execution, "get_cache", lambda path: None)

    def uncached(env, cache, name):
        return execution.Execution(name, Path(f"{name}.md"), None, error="not executed here")

    monkeypatch.setattr(execution, "_uncached", uncached)
    with pytest.raises(ExtensionError, match="c failed in code cell 0"):
        execution.execute_pages(app, None, {"a", "b", "c"})
    assert asked == [(["c", "a", "b"], at_once)], "the page that takes longest begins first"


def test_gpus_are_found_wherever_the_system_shows_them(tmp_path, monkeypatch):
    """NVIDIA's driver, AMD's topology without its CPU nodes, and the device nodes of containers and of WSL."""
    nodes = "sys/class/kfd/kfd/topology/nodes"
    shown = {
        "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t A Card\nIRQ: 7\nGPU UUID: \t GPU-1\n",
        f"{nodes}/0/properties": "cpu_cores_count 64\ngfx_target_version 0\n",
        f"{nodes}/1/properties": "simd_count 1024\ngfx_target_version 90500\n",
        f"{nodes}/2/properties": "\n",
    } | {f"dev/{name}": "" for name in ("nvidia0", "nvidiactl", "null", "dxg")}
    for name, text in shown.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(execution, "Path", lambda place: tmp_path / place.removeprefix("/"))
    device_nodes = [str(tmp_path / "dev/nvidia0"), str(tmp_path / "dev/dxg")]
    assert execution.gpus() == ["Model: \t A Card", "GPU UUID: \t GPU-1", "gfx_target_version 90500", *device_nodes]


@pytest.mark.parametrize("error", [CellTimeoutError("too long"), DeadKernelError("Kernel died")])
def test_a_page_that_hangs_or_loses_its_kernel_has_failed(monkeypatch, error):
    given = {}

    class Client:
        def __init__(self, notebook, **options):
            given.update(options)

        async def async_execute(self):
            raise error

    monkeypatch.setattr(execution, "NotebookClient", Client)
    page = execution.Execution("page", Path("chapters/page.md"), nbformat.v4.new_notebook())
    asyncio.run(execution._execute_all([page], 1, 7))
    assert page.error == str(error)
    assert (given["timeout"], given["resources"]) == (7, {"metadata": {"path": "chapters"}})


def test_every_output_of_a_page_is_looked_at_for_an_error():
    raised = nbformat.v4.new_output("error", ename="ValueError", evalue="x", traceback=["ValueError: no such row"])
    cells = [nbformat.v4.new_code_cell("a"), nbformat.v4.new_markdown_cell("b"), nbformat.v4.new_code_cell("c")]
    for cell in cells[::2]:
        cell.outputs = [nbformat.v4.new_output("stream", text="1"), nbformat.v4.new_output("display_data")]
    assert execution._display_error(nbformat.v4.new_notebook(cells=cells)) == ""
    cells[2].outputs.append(raised)
    assert execution._display_error(nbformat.v4.new_notebook(cells=cells)) == "ValueError: no such row"


# Pages


def git(folder, *arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", *who, "-C", str(folder), *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def dated(folder, page="page"):
    env, context = SimpleNamespace(doc2path=lambda name: str(folder / f"{name}.md")), {}
    chipbook.date_page(SimpleNamespace(srcdir=folder, env=env), page, "", context, object())
    return context["last_updated"]


def test_a_page_shows_the_commit_of_its_last_change(tmp_path):
    book = tmp_path / "book"
    book.mkdir()
    git(book, "init", "-q")
    for page, text in (("page", "1"), ("page", "2"), ("other", "3")):
        (book / f"{page}.md").write_text(text)
        git(book, "add", ".")
        git(book, "commit", "-q", "-m", text)
    (book / "new.md").write_text("")
    assert dated(book) == git(book, "log", "-1", "--skip=1", "--format=%cs, commit %h")
    assert dated(book, "other") == git(book, "log", "-1", "--format=%cs, commit %h")
    assert dated(book, "new") is None, "not committed"
    assert dated(tmp_path) is None, "no repository"
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{book}", "shallow")
    assert dated(tmp_path / "shallow") is None, "git would name its oldest commit"


def test_a_page_that_quotes_a_changed_one_is_read_again(built_book, put_back):
    """Not the landing page, which Sphinx writes again with every page that it lists."""
    toc = built_book.root / "_toc.yml"
    (built_book.root / "quoting.md").write_text("# Quoting\n\nA block takes {evidence}`page::ratio` bytes.\n")
    toc.write_text(f"{toc.read_text()}- file: quoting\n")
    assert built_book.build()[0] == 0
    assert "1.03125<span" in built_book.html("quoting")
    built_book.page.write_text(built_book.page.read_text().replace("33 / 32", "33 / 64"))
    assert built_book.build()[0] == 0
    assert "0.51562<span" in built_book.html("quoting")


CITING = '\n```{code-cell} ipython3\nglue("cited", Cited(2.5, ".1f", source="spec2023"))\n```\n'


def test_a_result_is_text_for_link_previews_and_search(built_book):
    assert built_book.build()[0] == 0  # the pages on disk may be another test's
    description = BeautifulSoup(built_book.html(), "html.parser").find("meta", property="og:description")["content"]
    assert "A block takes 1.03125 bytes a value." in description
    assert "03125" in (built_book.root / "_build/html/searchindex.js").read_text()


@pytest.mark.slow
def test_a_result_is_text_where_there_is_no_html(built_book, put_back):
    share = '```{code-cell} ipython3\nglue("share", Computed(0.5, ".1%"), display=False)\n```\n'
    built_book.add(f"{CITING}\n{share}\nHalf is {{evidence}}`share`, or {{evidence}}`cited`.\n")
    for builder in ("text", "latex", "singlehtml"):
        status, output = built_book.build("--builder", "custom", "--custom-builder", builder)
        assert status == 0, output
    assert "Half is 50.0%, or 2.5." in (built_book.root / "_build/text/page.txt").read_text()
    tex = "".join(path.read_text() for path in (built_book.root / "_build/latex").glob("*.tex"))
    assert r"Half is 50.0\%, or 2.5." in tex
    single = "".join(path.read_text() for path in (built_book.root / "_build/singlehtml").glob("*.html"))
    assert 'href="#cite-spec2023"' in single


def test_a_changed_reference_reaches_the_pages_that_cite_it(built_book, put_back):
    references = built_book.root / "references.bib"
    built_book.add(CITING)
    assert built_book.build()[0] == 0
    assert 'aria-label="cited: Bee, A Title, 2023"' in built_book.html()
    references.write_text(references.read_text().replace("A Title", "Another Title"))
    assert built_book.build()[0] == 0
    assert 'aria-label="cited: Bee, Another Title, 2023"' in built_book.html()
    references.write_text(references.read_text().replace("spec2023", "other2023"))
    status, output = built_book.build()
    assert status != 0
    assert "a result cites 'spec2023', which references.bib does not have" in output


@pytest.fixture(scope="module")
def built_book(tmp_path_factory):
    """A book that was built once; tests put back what they change."""
    book = ToyBook(tmp_path_factory.mktemp("book"))
    (book.root / "typed.html").write_text(f"<p>{BADGE}</p>\n")
    (book.root / "typed.txt").write_text(f"An included 1.5 {BADGE}.\n")
    status, output = book.build()
    assert status == 0, output
    return book


@pytest.fixture
def put_back(built_book):
    """Put back the built book's sources."""
    names = ("page.md", "intro.md", "_toc.yml", "references.bib")
    before = {built_book.root / name: (built_book.root / name).read_text() for name in names}
    yield
    for path, text in before.items():
        path.write_text(text)


# Badges

BADGE = '<span class="evidence evidence-measured" data-tip="live: A Card">±</span>'
SPELLINGS = [
    BADGE,
    '<SPAN CLASS="evidence-measured evidence">',
    "<b class=evidence>",
    '<b class="&#101;vidence &#101;vidence-cited">',
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


def claimed(html, text="1.5"):
    """Data and metadata of a display that passes its own HTML off as a result: they hold the right digest."""
    written = hashlib.sha256("\0".join((badges.METADATA_KEY, html, text)).encode()).hexdigest()
    return {"text/html": html, "text/plain": text}, {badges.METADATA_KEY: {"sha256": written}}


TILES = newest("mx_tiles")  # a committed recording, compiled
RIGHT_TIP = f"commit {TILES.commit[:7]}, {TILES.taken[:10]}"


def compiled_badge(tip=RIGHT_TIP, classes="evidence evidence-compiled"):
    return f'<b class="{classes}" data-recording="{TILES.file_name}" data-tip="{tip}">‹›</b>'


def test_a_right_badge_has_no_errors():
    assert badges.errors_of(*claimed(f'<span class="evidence-value">1.5{compiled_badge()}</span>'), ROOT) == []


@pytest.mark.parametrize(
    ("html", "error"),
    [
        (compiled_badge(tip=f"commit {TILES.commit[:7]}, 2020-01-01"), "a tip that does not name commit and date of"),
        (compiled_badge(tip=f"commit 0000000, {TILES.taken[:10]}"), "a tip that does not name commit and date of"),
        (compiled_badge(classes="evidence evidence-measured"), "no measured recording 'compiled-mx_tiles.json'"),
        ('<b class="evidence-value evidence-measured">±</b>', "no badge has the classes 'evidence-value evidence-me"),
        ('<b class="evidence-line evidence">±</b>', "no badge has the classes 'evidence-line evidence'"),
        ('<b class="evidence evidence-cited evidence-measured">±</b>', "no badge has the classes"),
        (
            '<b class="evidence evidence-cited" data-cite="nobody2020">”</b>',
            "a result cites 'nobody2020', which refere",
        ),
        ('<b class="evidence evidence-computed" data-recording="x.json">=</b>', "no computed recording 'x.json'"),
        *(
            (html, "a result holds a script, a style or a frame")
            for html in (
                "<script>x()</script>",
                "<style>.z::after {content: '±'}</style>",
                "<svg><STYLE>b {color: red}</STYLE></svg>",
                "<link rel=stylesheet href=x.css>",
                "<iframe srcdoc='±'></iframe>",
                "<object data=x.svg></object>",
                "<embed src=x.svg>",
                "<p ONCLICK=x()>1.5</p>",
            )
        ),
    ],
)
def test_what_passes_itself_off_as_a_result_is_refused(html, error):
    """Displayed by a cell, or glued and quoted: the same rules hold."""
    (told,) = badges.errors_of(*claimed(html), ROOT)
    assert told.startswith(error)
    env = SimpleNamespace(srcdir=str(ROOT))
    with pytest.raises(ExtensionError, match=f"^page:7: {re.escape(told)}"):
        badges._result(*claimed(html), env, "page:7", "key")


@pytest.mark.parametrize("mark", [None, "yes", {}, {"kind": "computed"}, {"sha256": "0" * 64}])
def test_what_no_result_object_wrote_is_refused(mark):
    data, metadata = claimed("1.5")
    assert badges.errors_of(data, metadata, ROOT) == []
    for changed in ({**data, "text/html": "2.5"}, {**data, "text/plain": "2.5"}):
        (told,) = badges.errors_of(changed, metadata, ROOT)
        assert told.startswith("not as a result of chipmath.evidence displays itself")
    (told,) = badges.errors_of(data, {badges.METADATA_KEY: mark}, ROOT)
    assert told.startswith("not as a result of chipmath.evidence displays itself: '1.5'")


@pytest.mark.parametrize("found", [[], ["Model: A Card"]])
def test_only_a_measured_result_is_live_and_only_where_a_gpu_is(monkeypatch, found):
    monkeypatch.setattr(badges, "gpus", lambda: found)
    live = '<b class="evidence evidence-{}" data-live="residency">±</b>'
    told = badges.errors_of(*claimed(live.format("measured")), ROOT)
    assert told == ([] if found else ["a live result of 'residency', and this machine has no GPU"])
    assert badges.errors_of(*claimed(live.format("compiled")), ROOT)


def test_a_badge_copied_in_the_finished_page_is_one_too_many():
    """Equal to a right one, to the letter: they are counted."""
    document = nodes.container("", badges.ResultHTML("", f"1.5{compiled_badge()}", format="html"))
    shown = {"body": f"<p>1.5{compiled_badge()}</p>"}
    badges.check_page(None, "page", "page.html", shown, document)
    shown["body"] += compiled_badge()
    with pytest.raises(ExtensionError, match=r"^page: a badge is typed by hand"):
        badges.check_page(None, "page", "page.html", shown, document)


@pytest.mark.parametrize(
    ("authors", "named"),
    [
        ("Ann Bee", "Bee"),
        ("Ann Bee and {Dee Inc.}", "Bee and Dee Inc."),
        ("Ann Bee and Cid Dee and Eve Fay", "Bee et al."),
    ],
)
def test_a_source_is_named_in_a_line(tmp_path, authors, named):
    (tmp_path / "references.bib").write_text(f"@misc{{k, author={{{authors}}}, title={{{{A}} Title}}, year={{2023}}}}")
    assert badges.bibliography(tmp_path) == {"k": f"{named}, A Title, 2023"}


TYPED = [
    '1.5 <SPAN CLASS="evidence-measured evidence">±</SPAN>',
    '1.5 <span class="&#101;vidence evidence-measured">±</span>',
    "1.5 [±]{.evidence .evidence-measured}",
    ":::{container} evidence-measured evidence\n1.5\n:::",
    ":::{note}\n:class: evidence evidence-measured\n1.5\n:::",
    f"```{{raw}} html\n{BADGE}\n```",
    "```{raw} html\n:file: typed.html\n```",
]


def built_with(book, page, added):
    """Build the book with a text at the end of a page, and put the page back."""
    before = page.read_text()
    page.write_text(f"{before}\n{added}\n")
    status, output = book.build()
    page.write_text(before)
    assert status != 0
    return output


def test_every_typed_badge_fails_the_build_with_its_line(built_book):
    intro, lines = built_book.root / "intro.md", []
    text = intro.read_text()
    for typed in [*TYPED, "```{include} typed.txt\n```"]:
        lines.append(text.count("\n") + 3)
        text += f"\n{typed}\n"
    output = built_with(built_book, intro, text.removeprefix(intro.read_text()))
    assert [int(line) for line in re.findall(r"intro\.md:(\d+): a badge is typed", output)][: len(TYPED)] == lines[:-1]
    assert re.search(r"typed\.txt:\d+: a badge is typed by hand", output)  # MyST counts an included file from 2


OWN_HTML = [
    "<style>.z::after {content: '±'}</style>",
    "<script>document.body.firstChild.className = 'evi' + 'dence'</script>",
    "<iframe srcdoc='<b class=&quot;evi&amp;#100;ence&quot;>±</b>'></iframe>",
    "<b style='border: 1px solid'>±</b>",
    "<sup onclick='x()'>",
    "<br><style>.z::after {content: '±'}</style>",
    '<span cla\n```\n\n```{raw} html\nss="evidence evidence-measured">±</span>',
]


def test_html_of_a_page_itself_fails_the_build_with_its_line(built_book):
    """It could paint a badge without a badge's class; a bare tag cannot."""
    text = "".join(f"\n```{{raw}} html\n{html}\n```\n" for html in OWN_HTML)
    output = built_with(built_book, built_book.root / "intro.md", f"H<sub>2</sub>O\n{text}")
    found = {int(line) for line in re.findall(r"intro\.md:(\d+): HTML that is no result", output)}
    assert found == {7 + 4 * number for number in range(len(OWN_HTML) + 1)}, "the last is in two halves"


def test_a_badge_that_only_the_finished_page_shows_fails_the_build(built_book):
    """The title of a dropdown gets its class when the page is written."""
    dropdown = ":::{dropdown} ±\n:class-title: evidence evidence-measured\n1.5\n:::"
    assert "intro: a badge is typed by hand" in built_with(built_book, built_book.root / "intro.md", dropdown)


CARD = "{'name': 'A Card', 'arch': 'sm_90', 'clock_hz_before': None, 'clock_hz_after': None}"
SETUP = f"""
import dataclasses, hashlib
from IPython.display import HTML, Javascript, Markdown, display
from chipmath import evidence, recordings
def marked(html):
    # what a cell must do to pass its own HTML off as a result
    written = hashlib.sha256("\\0".join(("chipmath-evidence", html, "1.5")).encode()).hexdigest()
    mark = {{"chipmath-evidence": {{"sha256": written}}}}
    display({{"text/html": html, "text/plain": "1.5"}}, metadata=mark, raw=True)
data, metadata = Computed(1.5)._repr_mimebundle_()
kept = recordings.newest("mx_tiles")
timed = dataclasses.replace(kept, kind="measured", device={CARD})
"""
# code of a cell, and what the build says of it
MADE = [
    ("HTML('<b class=\"evi' + 'dence evidence-measured\">±</b>')", "a badge is typed by hand"),
    ("Markdown('1.5 <b class=\"evidence evidence-measured\">±</b>')", "a badge is typed by hand"),
    ("display(data, metadata={'chipmath-evidence': {'kind': 'computed'}}, raw=True)", "not as a result"),
    (
        "data['text/html'] += '<b>2.5</b>'\ndisplay(data, metadata=metadata, raw=True)",
        "not as a result",
    ),
    (
        "evidence.is_recorded = lambda recording: True\n"
        "Compiled(1, recording=dataclasses.replace(kept, experiment='my_own'))",
        "no compiled recording 'compiled-my_own.json'",
    ),
    (
        "recordings.note_taken(timed)\nMeasured(1.5, recording=timed, live=True)",
        "a live result of 'mx_tiles', and this machine has no GPU",
    ),
    ('Cited(2.5, ".1f", source="nobody2020")', "a result cites 'nobody2020', which references.bib does not have"),
    ("Table(['x'], [[1.5]])", "HTML that is no result"),
    ("Javascript('document.body.className = \\'evi\\' + \\'dence\\'')", "HTML that is no result"),
    ("Computed(HTML('1.5<script>document.title = 1</script>'))", "a result holds a script, a style or a frame"),
    ("Computed(HTML('1.5<img onerror=x() alt=1>'))", "a result holds a script, a style or a frame"),
    ("marked('<b class=\"evidence evidence-timed\">±</b>')", "no badge has the classes 'evidence evidence-timed'"),
    ("marked('<b class=evidence-measured>±</b>')", "no badge has the classes 'evidence-measured'"),
    ("marked('<b class=\"evidence evidence-compiled\">±</b>')", "no compiled recording None"),
    ("marked('<b class=\"evidence evidence-cited\">±</b>')", "a result cites None"),
    ("marked('<b class=\"evidence evidence-computed\" data-recording=x.json>±</b>')", "no computed recording 'x.json'"),
    (
        "marked('<b class=\"evidence evidence-compiled\" data-recording=../recorded/compiled-mx_tiles.json>±</b>')",
        "no compiled recording '../recorded/compiled-mx_tiles.json'",
    ),
    (
        "marked('<b class=\"evidence evidence-measured\" data-recording=compiled-mx_tiles.json>±</b>')",
        "no measured recording 'compiled-mx_tiles.json'",
    ),
    (
        "marked('<b class=\"evidence evidence-compiled\" data-recording=compiled-mx_tiles.json data-tip=H100>±</b>')",
        "a tip that does not name commit and date of compiled-mx_tiles.json: 'H100'",
    ),
]


def test_every_badge_made_in_a_cell_fails_the_build_with_its_cell(built_book):
    if execution.gpus():
        pytest.skip("this machine has a GPU, where a result may be live")
    cells = [SETUP, *(code for code, _ in MADE)]
    text = "\n".join(f"```{{code-cell}} ipython3\n{code.strip()}\n```\n" for code in cells)
    output = built_with(built_book, built_book.page, text)
    for number, (code, message) in enumerate(MADE, 3):
        by_line = code.startswith(("Markdown", "Javascript", "Table"))
        where = r"page\.md:\d+" if by_line else f"page, code cell {number}"
        assert re.search(f"{where}: {re.escape(message)}", output), (code, message)


def saved_notebook(path, *tags):
    """A notebook whose saved output claims to be a result, as an editor or a hand left it."""
    data, metadata = claimed('99.5<span class="evidence evidence-computed">=</span>', "99.5")
    cells = [nbformat.v4.new_markdown_cell("# Saved"), nbformat.v4.new_code_cell("print('this build')")]
    cells[1].outputs, cells[1].metadata.tags = (
        [nbformat.v4.new_output("display_data", data=data, metadata=metadata)],
        list(tags),
    )
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}, "language_info": {"name": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)


@pytest.mark.parametrize("tags", [(), ("skip-execution",)])
def test_outputs_saved_in_a_notebook_are_thrown_away(built_book, put_back, tags):
    toc, page = built_book.root / "_toc.yml", built_book.root / "saved.ipynb"
    saved_notebook(page, *tags)
    toc.write_text(f"{toc.read_text()}- file: saved\n")
    status, output = built_book.build()
    page.unlink()
    assert status == 0, output
    assert "99.5" not in built_book.html("saved")
    printed = [
        output.get_text(strip=True)
        for output in BeautifulSoup(built_book.html("saved"), "html.parser").select(".output")
    ]
    assert printed == ([] if tags else ["this build"])


@pytest.mark.parametrize("option", ["execution_mode: 'off'", "execution_allow_errors: true"])
def test_no_page_decides_how_it_is_executed(built_book, put_back, option):
    text = built_book.page.read_text()
    built_book.page.write_text(text.replace("kernelspec:", f"mystnb: {{{option}}}\nkernelspec:"))
    status, output = built_book.build()
    assert status != 0
    assert f"page: {option.partition(':')[0]}: how pages are executed is set in _config.yml, for all" in output


def test_a_made_up_live_recording_is_refused_where_it_is_made(built_book):
    code = f"{SETUP.strip()}\nMeasured(1.5, recording=timed, live=True)"
    output = built_with(built_book, built_book.page, f"```{{code-cell}} ipython3\n{code}\n```")
    assert "not live: chipmath.bench has not taken this mx_tiles in this process" in output


@pytest.mark.parametrize(
    "role", ["{Glue}`bare`", "{glue:text}`bare:.2f`", "```{glue:figure} bare\n```", "```{glue} bare\n```"]
)
def test_roles_that_show_a_bare_number_fail_the_build(built_book, role):
    output = built_with(built_book, built_book.page, role)
    assert re.search(r"page:1\d: \{glue.*\} shows a result bare; use \{evidence\}", output)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("v_mfma_f32_16x16x128_f8f6f4", "v_mfma_<wbr>f32_<wbr>16x16x128_<wbr>f8f6f4"),
        ("HGMMA.64x128x16.F32.BF16", "HGMMA.64x128x16.<wbr>F32.<wbr>BF16"),
        ("64, 72, 80, 96, 128", "64, <wbr>72, <wbr>80, <wbr>96, <wbr>128"),
        ("registers and LDS", "registers <wbr>and LDS"),
        ("1.75 × 2 − 126.0625", "1.75 × 2 − 126.0625"),  # arithmetic stays together
        ("5,033 TFLOP/s", "5,033 TFLOP/s"),
        ("120000.0625 \N{NO-BREAK SPACE}dB", "120000.0625 \N{NO-BREAK SPACE}dB"),
    ],
)
def test_a_long_value_may_break_where_a_reader_would_break_it(value, written):
    html = (
        '<p><span class="evidence-value">{}<span class="evidence evidence-computed" data-tip="a_b">=</span></span></p>'
    )
    context = {"body": html.format(value)}
    badges.break_long_values(None, "page", "page.html", context, None)
    assert context["body"] == html.format(written)


@pytest.mark.parametrize("scripts", [0, 2])
def test_a_theme_that_loads_its_icons_otherwise_is_noticed(scripts):
    line = '<script defer src="../_static/scripts/fontawesome.js?digest=0"></script>\n'
    with pytest.raises(ExtensionError, match=rf"{scripts} lines with _static/scripts/fontawesome.js"):
        head.lean_head("<link>\n" + scripts * line)
