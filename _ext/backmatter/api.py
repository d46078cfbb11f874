"""The API page: docstrings of chipmath made into reStructuredText.

The package writes its docstrings to be read in an editor: running text, and lists of "name  what it is" in columns.
Here the columns become definition lists, and characters that only reStructuredText would take for markup are escaped.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective

# The modules that pages and readers use, in the order in which they build on each other; one that a checkout lacks is
# left out. Experiments, kernels and helpers are read in their source.
MODULES = (
    "formats", "devices", "quantize", "matmul", "noise", "nvfp4", "occupancy", "quantize_cpu", "quantize_gpu",
    "matmul_gpu", "ilp", "training.amdahl", "training.recipes", "training.probes", "training.run", "crosscompile",
    "gpu", "bench", "recordings", "evidence", "measurements", "figures",
)  # fmt: skip
OPTIONAL = ("triton", "numba")  # modules of chipmath import them; the page has to build without
ATTRIBUTE = ".. attribute:: "
LISTED = "fields that the docstring of the class in hand lists"
ENTRY = re.compile(r"(?P<name>\S(?:.*?\S)?) {2,}(?P<text>\S.*)")


class Api(SphinxDirective):
    """``{api}``: a section for every module, from its docstrings."""

    def run(self):
        """Let autodoc write each section."""
        self.env.note_dependency(__file__)
        package = Path(self.env.srcdir) / "kernels/chipmath"
        return [self.section(name) for name in MODULES if (package / f"{name.replace('.', '/')}.py").exists()]

    def section(self, name: str) -> nodes.section:
        """Return one module's section."""
        title = f"chipmath.{name}"
        section = nodes.section("", nodes.title("", title), ids=[nodes.make_id(title)])
        section["names"] = [nodes.fully_normalize_name(title)]
        # autodoc knows comments that begin with "#:" only; the package writes them for a reader of the source
        analyzer = ModuleAnalyzer.for_module(title)
        analyzer.analyze()
        analyzer.attr_docs |= field_comments(analyzer.code)
        options = ("members:", "undoc-members:", "member-order: bysource")
        lines = ["```{eval-rst}", f".. automodule:: {title}", *(f"   :{option}" for option in options), "```"]
        self.state.nested_parse(StringList(lines, source=self.env.docname), self.content_offset, section)
        return section


def find_package(app, config) -> None:
    """Have autodoc describe the chipmath of this checkout, with or without the optional packages."""
    sys.path.insert(0, str(Path(app.srcdir) / "kernels"))
    config.autodoc_mock_imports = [name for name in OPTIONAL if find_spec(name) is None]


def rewrite(app, what, name, obj, options, lines) -> None:
    """Replace a docstring's lines by reStructuredText; the fields that a class lists there can be linked to."""
    fields = set(getattr(obj, "__dataclass_fields__", ())) if what == "class" else set()
    lines[:] = restructured(lines, fields)
    if what == "class":
        app.env.temp_data[LISTED] = {line.removeprefix(ATTRIBUTE) for line in lines if line.startswith(ATTRIBUTE)}


def skip_listed(app, what, name, obj, skip, options) -> bool | None:
    """Leave out a field that the docstring of its class, which autodoc writes just before, has an entry for."""
    return True if what == "class" and name in app.env.temp_data.get(LISTED, ()) else None


def field_comments(source: str) -> dict[tuple[str, str], list[str]]:
    """Return the comment behind each field of each class, as in ``bits: int  # of a code``, by class and field."""
    found, owner = {}, ""
    for line in source.splitlines():
        if new := re.match(r"class (\w+)", line):
            owner = new[1]
        elif field := re.match(r"    (\w+): [^#\"]*#\s*(.+)", line):
            found[owner, field[1]] = [field[2], ""]
    return found


def shorten(app, what, name, obj, options, signature, returns) -> tuple[str | None, str | None]:
    """Write types by their last name: autodoc marks them with a tilde, which only a link would take away."""
    return tuple(text and re.sub(r"~(?:\w+\.)+", "", text) for text in (signature, returns))


def restructured(lines: list[str], fields: Collection[str] = ()) -> list[str]:
    """Return the lines of a docstring as reStructuredText, with an entry for each of the fields that it lists."""
    made: list[str] = []
    literal = False
    for block in _blocks(lines):
        indented = block[0].startswith(" ")
        literal = literal and indented
        if literal:
            made += [*block, ""]
        elif all(line.startswith("    ") for line in block):  # formulas, or columns set apart: as in the source
            made += [".. code-block:: text", "", *block, ""]
        elif _is_columns(block):
            made += _definitions(block, fields)
        else:
            made += [*(_escaped(line.strip()) for line in block), ""]
        literal = literal or block[-1].endswith("::")
    return made


def _blocks(lines: list[str]) -> list[list[str]]:
    blocks: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            blocks[-1].append(line)
        elif blocks[-1]:
            blocks.append([])
    return [block for block in blocks if block]


def _is_columns(block: list[str]) -> bool:
    """Return whether a block lists names with what they are, or points: each line an entry or its continuation."""
    first = ENTRY.fullmatch(block[0]) or block[0].startswith("- ")
    return bool(first) and all(line.startswith((" ", "- ")) or ENTRY.fullmatch(line) for line in block)


def _definitions(block: list[str], fields: Collection[str]) -> list[str]:
    made: list[str] = []
    for line in block:
        entry = ENTRY.fullmatch(line)
        if line.startswith("- "):
            made += ["", "- " + _escaped(line[2:])]
        elif line.startswith(" "):
            made.append(("  " if made and "- " in block[0][:2] else "    ") + _escaped(line.strip()))
        else:
            name = entry["name"].strip("`")
            term = [ATTRIBUTE + name, ""] if name in fields else [f"``{name}``"]
            made += ["", *term, "    " + _escaped(entry["text"])]
    return [*made, ""]


def _escaped(text: str) -> str:
    """Escape markup outside code; a name in single backticks is code too."""
    parts = re.split(r"(``.+?``(?!`)|`[^`]+`)", text)
    return "".join(
        (part if part.startswith("``") else f"`{part}`")
        if part.startswith("`")
        else re.sub(r"([*|\\])|_(?!\w)", r"\\\g<0>", part)
        for part in parts
    )


def setup(app):
    """Register with Sphinx."""
    app.setup_extension("sphinx.ext.autodoc")
    app.add_directive("api", Api)
    app.connect("config-inited", find_package)
    app.connect("autodoc-process-docstring", rewrite)
    app.connect("autodoc-skip-member", skip_listed)
    app.connect("autodoc-process-signature", shorten)
