"""Interactive explorers as a directive: ``{explorer} occupancy`` or ``{explorer} mx-block``, once a page.

The directive writes the form and, as a table, the first result that the Python model gives: what a page shows without
JavaScript. The scripts and their data go to ``_static/explorers/`` of the built book and load only on pages that embed
an explorer (Jupyter Book would load a script in the source's ``_static/`` on every page).

Each explorer has a module of its own name here, with ``data()``, what its script needs to know, and ``first()``, what
fills its form: the first result and the choices.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from string import Template

from chipbook.badges import ResultHTML
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

HERE = Path(__file__).parent
FOLDER = "explorers"  # in the built book's _static
NAMES = ("occupancy", "mx-block")
SHARED_SCRIPT, STYLES = "explorer.js", "explorers.css"
MODEL = (
    "devices",
    "occupancy",
    "formats",
    "quantize",
    "evidence",
    "recordings",
)  # of chipmath: where the data come from


class Explorer(SphinxDirective):
    """``{explorer} name``: the explorer's form, and below it the model's first result as a table."""

    required_arguments = 1

    def run(self):
        """Return the explorer as HTML; other formats have no use for it."""
        name = self.arguments[0]
        where = f"{self.env.docname}:{self.lineno}"
        if name not in NAMES:
            raise ExtensionError(f"{where}: no explorer {name!r}; there are {', '.join(NAMES)}")
        embedded = self.env.metadata[self.env.docname].setdefault("explorers", [])
        if name in embedded:
            raise ExtensionError(f"{where}: the {name} explorer is on this page already")
        embedded.append(name)
        for path in _sources():
            self.env.note_dependency(str(path))
        page = re.sub(r"\W+", "-", self.env.docname)  # singlehtml puts several pages into one, where ids must differ
        form = Template((HERE / f"{name}.html").read_text(encoding="utf-8"))
        parts = _module(name).first()
        shown, _ = parts.pop("first")._repr_mimebundle_()
        html = form.substitute(parts, first=shown["text/html"], id=f"{page}-{name}")
        return [ResultHTML("", html, format="html")]


def write_scripts(app, env) -> None:
    """Put scripts, styles and data of the book's explorers where its pages look for them."""
    names = {name for page in env.metadata.values() for name in page.get("explorers", ())}
    if app.builder.format != "html" or not names:
        return
    folder = Path(app.outdir) / "_static" / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name in (SHARED_SCRIPT, STYLES, *(f"{name}.js" for name in names)):
        shutil.copyfile(HERE / name, folder / name)
    mark = f"// {_digest()}\n"
    for name in sorted(names):
        path = folder / f"{name}-data.js"
        if not path.exists() or not path.read_text(encoding="utf-8").startswith(mark):
            path.write_text(mark + data_script(name), encoding="utf-8")


def load_scripts(app, pagename, templatename, context, doctree) -> None:
    """Load what the explorers of this page need, in the order in which they need it."""
    names = sorted(set(re.findall(r'data-explorer="([\w-]+)"', context.get("body", ""))))
    if not names:
        return
    app.add_css_file(f"{FOLDER}/{STYLES}")
    for script in (SHARED_SCRIPT, *(script for name in names for script in (f"{name}-data.js", f"{name}.js"))):
        app.add_js_file(f"{FOLDER}/{script}", loading_method="defer")


def data_script(name: str) -> str:
    """Return an explorer's data as a classic script: a page opened from disk may load no module and fetch nothing."""
    content = json.dumps(_module(name).data(), separators=(",", ":"), ensure_ascii=False)
    return f'window.CHIPMATH_DATA = window.CHIPMATH_DATA || {{}};\nCHIPMATH_DATA["{name}"] = {content};\n'


def _module(name: str):
    """Import an explorer's module, and with it torch, which a build without explorers need not wait for."""
    return import_module(f"explorers.{name.replace('-', '_')}")


def _sources() -> list[Path]:
    """Return every file that an explorer's first result and data depend on."""
    package = Path(next(iter(find_spec("chipmath").submodule_search_locations)))
    return [*(package / f"{name}.py" for name in MODEL), *sorted(HERE.glob("*.py")), *sorted(HERE.glob("*.html"))]


def _digest() -> str:
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in _sources())).hexdigest()


def setup(app):
    """Register the directive with Sphinx."""
    app.add_directive("explorer", Explorer)
    app.connect("env-updated", write_scripts)
    app.connect("html-page-context", load_scripts)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
