"""Each executable page as a notebook that runs alone in an empty folder, without network.

The prose is the page's, with roles replaced by the values of this build; the code is the page's, unchanged. The first
cell says what the notebook is, the second unpacks the package ``chipmath`` and the page's data, which it carries.
Beside the clean notebook lies one with the outputs of this build.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import lzma
import platform
import textwrap
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.parse import urljoin

import nbformat
from book_sources import Sources
from docutils import nodes
from jupyter_cache import get_cache
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from portable.markdown import MarkdownWriter, escape
from portable.pages import cited, page_address, target_page, title

SYMBOLS = {"computed": "=", "compiled": "‹›", "measured": "±", "cited": "”"}  # as the book's badges in running text
PACKAGE_FILES = ("*.py", "*.cu", "*.hip", "*.h", "*.cpp", "*.json")
RECORD = "application/papermill.record/"  # outputs that only the book reads
WITH_OUTPUTS = "-with-outputs"


@dataclass(frozen=True)
class Package:
    """What a notebook carries: files of the package, the page's data and the styles of results, packed into text."""

    digest: str
    cell: str

    @classmethod
    def of(cls, root: Path, docname: str) -> Package:
        """Pack what ``docname`` needs from the book at ``root``."""
        found = [path for pattern in PACKAGE_FILES for path in (root / "kernels/chipmath").rglob(pattern)]
        package = {path.relative_to(root / "kernels").as_posix(): _text(path) for path in sorted(found)}
        home = (root / docname).parent
        data = {path.relative_to(home).as_posix(): _text(path) for path in sorted((home / "data").glob("*"))}
        content = {"package": package, "data": data, "style": _text(root / "_static/evidence.css")}
        raw = json.dumps(content, ensure_ascii=False, sort_keys=True).encode()
        digest = hashlib.sha256(json.dumps(package, sort_keys=True).encode()).hexdigest()[:8]
        packed = base64.b64encode(lzma.compress(raw, preset=9)).decode()
        _, _, template = _text(Path(__file__).with_name("unpack.py")).partition("\n")  # the first line is for ruff
        lines = "\n".join(textwrap.wrap(packed, 120))
        return cls(digest, template.replace("@PACKED@", lines).replace("@FOLDER@", f"chipmath-{digest}").rstrip())


def notebook(app, docname: str, doctree, executed, changed: str) -> nbformat.NotebookNode:
    """Return the page as a notebook with the outputs of this build.

    executed  MyST-NB's executed notebook, whose code cells are taken, those that the page does not show included
    changed   date and commit of the page, empty if unknown
    """
    number = {id(cell): index for index, cell in enumerate(executed.cells)}
    waiting = [cell for cell in executed.cells if cell.cell_type == "code"]
    cells = []

    def on_cell(node: nodes.Element) -> list[str]:
        return [_Cell(node["cell_index"], writer.figure_caption(node))]

    def take_code(last: int) -> None:
        while waiting and number[id(waiting[0])] <= last:
            cells.append(_code(waiting.pop(0)))

    writer = _writer(app, docname, on_cell)
    prose: list[str] = []
    for block in _without_title(writer.blocks(doctree)):
        if not isinstance(block, _Cell):
            prose.append(block)
            continue
        _add_prose(cells, prose)
        take_code(block.index)
        prose = list(block.captions)
    take_code(len(executed.cells))
    _add_prose(cells, prose)
    _add_prose(cells, _sources(app, doctree))

    package = Package.of(Path(app.srcdir), docname)
    first = new_markdown_cell(_first_cell(app, docname, package, changed))
    unpack = new_code_cell(package.cell, metadata={"jupyter": {"source_hidden": True}, "cellView": "form"})
    made = new_notebook(cells=[first, unpack, *cells], metadata=_metadata(app, docname))
    for position, cell in enumerate(made.cells):
        cell["id"] = f"cell-{position:03d}"  # nbformat's own are random: two builds would differ
    nbformat.validate(made)
    return made


def without_outputs(made: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return a copy of a notebook as if it had never run."""
    clean = copy.deepcopy(made)
    for cell in clean.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return clean


def names(docname: str) -> tuple[str, str]:
    """Return the file names of the clean and the executed notebook, relative to the built book."""
    return f"{docname}.ipynb", f"{docname}{WITH_OUTPUTS}.ipynb"


def write(app, docname: str, doctree, changed: str) -> None:
    """Put both notebooks beside the built page."""
    source = nbformat.read(Path(app.env.mystnb_config.output_folder) / f"{docname}.ipynb", as_version=4)
    _, executed = get_cache(app.config.nb_execution_cache_path).merge_match_into_notebook(source)
    made = notebook(app, docname, doctree, executed, changed)
    for name, content in zip(names(docname), (without_outputs(made), made)):
        (Path(app.outdir) / name).write_text(nbformat.writes(content) + "\n", encoding="utf-8")


class _Cell(str):
    """The place of a code cell among blocks of prose."""

    def __new__(cls, index: int, captions: list[str]):
        self = super().__new__(cls, "")
        self.index, self.captions = index, captions
        return self


def _writer(app, docname: str, on_cell=None) -> MarkdownWriter:
    def link(address: str) -> str | None:
        """Lead to the book's public pages; while it has no address only links that leave the book are kept."""
        if address.startswith("#"):
            return None
        if target_page(docname, address) is None:
            return address
        here = page_address(app, docname)
        return urljoin(here, address) if here else None

    def badge(kinds: list[str]) -> str:
        return f"<sup>{''.join(SYMBOLS[kind] for kind in kinds)}</sup>"

    return MarkdownWriter(link, badge, app.env.toc_fignumbers.get(docname, {}), on_cell)


def _code(cell) -> nbformat.NotebookNode:
    tags = cell.metadata.get("tags", [])
    hidden = {"source_hidden": True} if {"remove-cell", "remove-input", "hide-input", "hide-cell"} & set(tags) else {}
    outputs = [o for o in cell.outputs if not all(kind.startswith(RECORD) for kind in o.get("data", {"": ""}))]
    metadata = {"jupyter": hidden} if hidden else {}
    return new_code_cell(cell.source, outputs=outputs, execution_count=cell.execution_count, metadata=metadata)


def _add_prose(cells: list, blocks: list[str]) -> None:
    if blocks:
        cells.append(new_markdown_cell("\n\n".join(blocks)))


def _without_title(blocks: list[str]) -> list[str]:
    return blocks[1:] if blocks and blocks[0].startswith("# ") else blocks


def _first_cell(app, docname: str, package: Package, changed: str) -> str:
    software = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "numpy", "matplotlib"))
    versions = f"Python {platform.python_version()}, {software}"
    address = page_address(app, docname)
    where = f"[a page]({address})" if address else "a page"
    signs = ", ".join(f"{sign} {kind}" for kind, sign in SYMBOLS.items())
    last = f" (last changed {changed})" if changed else ""
    return f"""# {title(app, docname)}

> **This notebook runs by itself.** It is {where} of {app.config.html_title}'s book{last}, with the code behind it
> packed into the next cell.
>
> *To run it:* open it in Jupyter or Colab and run all cells, from top to bottom. It needs Python 3.10 or later with
> numpy, torch and matplotlib (`pip install numpy torch matplotlib`), no network and no GPU. It writes the folder
> `chipmath-{package.digest}/` beside itself, and `data/` where the article reads data.
>
> *With a GPU* that torch can use, cells that call `measure` time it, 20 seconds each at most, and show the result
> beside what was recorded.
>
> *Numbers in sentences* are those of the book's build ({versions}); a sign after each says what stands behind it:
> {signs}. Numbers below cells are your own run's."""


def _metadata(app, docname: str) -> dict:
    return {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
        "title": title(app, docname),
    }


def _sources(app, doctree) -> list[str]:
    """Return the bibliography entries that the page cites, as a last section."""
    wanted = cited(doctree)
    if not wanted:
        return []
    # Not from the page of references: resolving it a second time would write every entry twice into that page.
    entries = app.env.get_domain("cite").bibdata.data
    known = {f"cite-{key.lower()}": key for key in entries.entries}
    found = Sources().format_bibliography(entries, [known[name] for name in wanted if name in known])
    return ["## Sources", "\n".join(f"- {escape(entry.text.render_as('text'))}" for entry in found)]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
