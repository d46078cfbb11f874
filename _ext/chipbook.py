"""The book's own Sphinx extension: what no healthy extension does.

execution   a cache that notices every change that can change a result; pages executed side by side, with progress
evidence    the role ``{evidence}`key```; badges of cited results linked to the bibliography; typed badges refused;
            the table of corrections
pages       duplicate inline scripts removed; date and commit of each page; reading time
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import platform
import posixpath
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from html import escape
from importlib import metadata
from pathlib import Path

import yaml
from docutils import nodes
from docutils.statemachine import StringList
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from myst_nb.core.read import create_nb_reader
from myst_nb.core.variables import RetrievalError
from myst_nb.ext.glue.crossref import read_glue_cache
from myst_nb.ext.glue.utils import retrieve_glue_data
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from pybtex.database import parse_file
from sphinx.errors import ExtensionError
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole

logger = logging.getLogger(__name__)

METADATA_KEY = "chipmath-evidence"  # written by chipmath.evidence, which a build must not import: cells import it
VERSIONED = ("torch", "triton", "triton-rocm", "pytorch-triton-rocm", "numpy", "matplotlib")
VISIBLE_DEVICES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
KEPT_CACHES = 4
HEARTBEAT_SECONDS = 5


# --- execution ------------------------------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    """Return the installed versions that can change a result; a package that is not installed is left out."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def gpus() -> list[str]:
    """Name the GPUs that the operating system shows, without importing torch (which takes seconds)."""
    nvidia = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    lines = [line for path in nvidia for line in path.read_text().splitlines()]
    found = [line for line in lines if line.startswith(("Model", "GPU UUID"))]
    for path in sorted(Path("/sys/class/kfd/kfd/topology/nodes").glob("*/properties")):
        properties = dict(line.split(maxsplit=1) for line in path.read_text().splitlines() if " " in line)
        if properties.get("gfx_target_version", "0") != "0":  # a CPU node has version 0
            found.append(f"gfx_target_version {properties['gfx_target_version']}")
    return found


def execution_key(root: Path, settings: dict[str, str]) -> str:
    """Return the digest of all that can change a page's results besides its own cells.

    root      the book: every file under kernels/ (package, recordings, .cu and .hip sources) and chapters/data/ counts
    settings  execution settings, versions and devices
    """
    found = [*(root / "kernels").rglob("*"), *(root / "chapters/data").rglob("*")]
    files = [path for path in found if path.is_file() and not _generated(path)]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update(repr(sorted(settings.items())).encode())
    return digest.hexdigest()[:20]


def _generated(path: Path) -> bool:
    return "__pycache__" in path.parts or path.suffix == ".pyc" or any(p.endswith(".egg-info") for p in path.parts)


def set_execution_cache(app, config) -> None:
    """Point MyST-NB at a cache of its own for this state of the code (jupyter-cache sees only the cells' text)."""
    execution = {n: repr(config[n]) for n in config.values if n.startswith("nb_execution_") and not n.endswith("_path")}
    visible = {n: os.environ.get(n, "") for n in VISIBLE_DEVICES}
    key = execution_key(Path(app.srcdir), execution | versions() | visible | {"gpus": repr(gpus())})
    # The pages' chipmath is this checkout's, which the key describes, wherever an editable install points.
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(app.srcdir) / "kernels"), *([inherited] if inherited else [])])
    caches = Path(app.outdir).parent / ".jupyter_cache"
    config.nb_execution_cache_path = str(caches / key)
    (caches / key).mkdir(parents=True, exist_ok=True)
    (caches / key).touch()
    for stale in sorted(caches.iterdir(), key=lambda p: p.stat().st_mtime, reverse=True)[KEPT_CACHES:]:
        shutil.rmtree(stale)


@dataclass
class Execution:
    """One page to execute and how far it is."""

    docname: str
    path: Path
    notebook: object
    started: float = 0.0
    cell: int = 0
    seconds: float = 0.0
    error: str = ""

    @property
    def code_cells(self) -> int:
        """Number of code cells."""
        return sum(cell.cell_type == "code" for cell in self.notebook.cells)


def execute_pages(app, env, docnames) -> None:
    """Execute the pages to be read that the cache does not hold, side by side, before Sphinx reads them.

    MyST-NB then finds their outputs in the cache. With a GPU in the machine they run one after the other, because two
    pages that time kernels on one GPU would disturb each other.
    """
    if app.config.nb_execution_mode != "cache":
        return
    cache = get_cache(app.config.nb_execution_cache_path)
    pages = [page for name in sorted(docnames) if (page := _uncached(env, cache, name))]
    if not pages:
        return
    at_once = 1 if gpus() else min(len(pages), os.cpu_count() or 1)
    logger.info("executing %d pages, %d at a time: %s", len(pages), at_once, ", ".join(p.docname for p in pages))
    asyncio.run(_execute_all(pages, at_once, app.config.nb_execution_timeout))
    for page in pages:
        if not page.error:
            bundle = CacheBundleIn(page.notebook, str(page.path), data={"execution_seconds": page.seconds})
            cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
    failed = [f"{page.docname} failed in code cell {page.cell}:\n{page.error}" for page in pages if page.error]
    if failed:
        raise ExtensionError("\n\n".join(failed))


def _uncached(env, cache, docname: str) -> Execution | None:
    path = Path(env.doc2path(docname))
    if not path.exists():
        return None
    text = path.read_text(encoding="utf-8")
    reader = create_nb_reader(str(path), env.myst_config, env.mystnb_config, text)
    if reader is None:
        return None
    notebook = reader.read(text)
    try:
        cache.match_cache_notebook(notebook)
    except KeyError:
        return Execution(docname, path, notebook)
    return None


async def _execute_all(pages: list[Execution], at_once: int, timeout: int) -> None:
    slots = asyncio.Semaphore(at_once)
    work = asyncio.gather(*(_execute(page, slots, timeout) for page in pages))
    while not work.done():
        await asyncio.wait([work], timeout=HEARTBEAT_SECONDS)
        for page in pages:
            if page.started and not page.seconds:
                elapsed = time.monotonic() - page.started
                logger.info("  %s: cell %d of %d, %.0f s", page.docname, page.cell, page.code_cells, elapsed)
    await work


async def _execute(page: Execution, slots: asyncio.Semaphore, timeout: int) -> None:
    def count(cell, cell_index):
        page.cell += cell.cell_type == "code"

    # record_timing would write times into the cells' metadata, which are part of jupyter-cache's key
    options = {"timeout": timeout, "record_timing": False, "resources": {"metadata": {"path": str(page.path.parent)}}}
    client = NotebookClient(page.notebook, on_cell_start=count, **options)
    async with slots:
        page.started = time.monotonic()
        logger.info("  %s: started", page.docname)
        try:
            await client.async_execute()
            page.error = _display_error(page.notebook)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            page.error = str(error)
        page.seconds = time.monotonic() - page.started
    logger.info("  %s: %s after %.1f s", page.docname, "failed" if page.error else "done", page.seconds)


def _display_error(notebook) -> str:
    """Return the traceback of a result whose display raised: IPython prints it into the page and goes on."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "\n".join("\n".join(output.traceback) for output in outputs if output.output_type == "error")


# --- evidence -------------------------------------------------------------------------------------------------------


class PendingEvidence(nodes.Element):
    """A result of another page, filled in when all pages are read."""


class EvidenceRole(SphinxRole):
    """``{evidence}`key``` or ``{evidence}`page::key```: a glued result; anything else fails the build."""

    def run(self):
        """Return the result's nodes, or a placeholder where it belongs to another page."""
        page, separator, key = self.text.rpartition("::")
        if separator:
            docname = posixpath.normpath(posixpath.join(posixpath.dirname(self.env.docname), page))
            _references(self.env).setdefault(self.env.docname, set()).add(docname)
            return [PendingEvidence("", docname=docname, key=key, line=self.lineno)], []
        try:
            glued = retrieve_glue_data(self.inliner.document, key)
        except RetrievalError as error:
            raise ExtensionError(f"{self.env.docname}:{self.lineno}: {{evidence}}`{key}`: {error}") from None
        return _result_nodes(glued.data, glued.metadata, f"{self.env.docname}:{self.lineno}", key), []


class PendingReadingTime(nodes.Element):
    """The reading time of a page, filled in when all pages are read."""


class ReadingTimeRole(SphinxRole):
    """``{reading-time}`page```: minutes to read a page's prose, from MyST's own word count."""

    def run(self):
        """Leave a placeholder: the other page may not have been read yet."""
        docname = posixpath.normpath(posixpath.join(posixpath.dirname(self.env.docname), self.text))
        _references(self.env).setdefault(self.env.docname, set()).add(docname)
        return [PendingReadingTime("", docname=docname, line=self.lineno)], []


class FillPlaceholders(SphinxPostTransform):
    """Replace placeholders by what other pages glued, or by their reading time."""

    default_priority = 5

    def run(self, **kwargs):
        """Fill in every placeholder of this page."""
        for node in list(self.document.findall(PendingReadingTime)):
            if node["docname"] not in self.env.all_docs:
                raise ExtensionError(f"{self.env.docname}:{node['line']}: no page {node['docname']!r} to read")
            minutes = self.env.metadata[node["docname"]]["wordcount"]["minutes"]
            node.replace_self(nodes.Text(f"{max(1, minutes)} min read"))
        for node in list(self.document.findall(PendingEvidence)):
            where = f"{self.env.docname}:{node['line']}"
            glued = read_glue_cache(self.env.mystnb_config.output_folder, node["docname"]).get(node["key"])
            if glued is None:
                raise ExtensionError(f"{where}: {node['docname']} glues no {node['key']!r}")
            node.replace_self(_result_nodes(glued["data"], glued.get("metadata", {}), where, node["key"]))


def _result_nodes(data: dict, meta: dict, where: str, key: str) -> list[nodes.Node]:
    if METADATA_KEY not in meta:
        shown = data.get("text/plain")
        raise ExtensionError(f"{where}: {{evidence}}`{key}` is not a result of chipmath.evidence, but {shown}")
    return [nodes.raw("", data["text/html"], format="html"), nodes.raw("", data["text/plain"], format="latex")]


def _references(env) -> dict[str, set[str]]:
    if not hasattr(env, "chipbook_references"):
        env.chipbook_references = {}
    return env.chipbook_references


def pages_quoting_changed(app, env, added, changed, removed) -> list[str]:
    """Have a page read again when a page that it quotes results from has changed."""
    moved = added | changed
    return [page for page, sources in _references(env).items() if sources & moved and page in env.found_docs]


def refuse_typed_badges(app, docname, source) -> None:
    """Fail the build where a page writes a badge itself, or quotes a result by a role that shows none."""
    text = source[0]
    typed = re.search(r"evidence evidence-|class\s*=\s*[\"']?evidence|data-(cite|recording|live)", text)
    if typed:
        where = f"{docname}:{_line(text, typed)}"
        raise ExtensionError(f"{where}: a badge is typed by hand ({typed.group()!r}); glue a result instead")
    bare = re.search(r"\{glue(:\w+)?\}", text)
    if bare:
        raise ExtensionError(f"{docname}:{_line(text, bare)}: {bare.group()} shows a result bare; use {{evidence}}")


def _line(text: str, match: re.Match) -> int:
    return text[: match.start()].count("\n") + 1


def link_cited(app, pagename, templatename, context, doctree) -> None:
    """Turn every badge of a cited result into a link to its source, and fail where references.bib lacks the key."""
    if "data-cite=" not in context.get("body", ""):
        return
    entries = _bibliography(app)

    def linked(badge):
        key = badge["key"]
        if key not in entries:
            raise ExtensionError(f"{pagename}: a result cites {key!r}, which references.bib does not have")
        target = f"{context['pathto']('references')}#cite-{key.lower()}"
        text = escape(entries[key])
        return (
            f'<a class="evidence evidence-cited" href="{target}" data-cite="{key}" aria-label="cited: {text}" '
            f'data-tip="{text}">{badge["label"]}</a>'
        )

    badges = r'<span class="evidence evidence-cited"[^>]* data-cite="(?P<key>[^"]*)"[^>]*>(?P<label>[^<]*)</span>'
    context["body"] = re.sub(badges, linked, context["body"])


def _bibliography(app) -> dict[str, str]:
    """Return one plain line for each key of references.bib."""
    lines = {}
    for key, entry in parse_file(str(Path(app.srcdir) / "references.bib")).entries.items():
        people = entry.persons.get("author", [])
        names = [" ".join(p.last_names) for p in people[:2]] + (["et al."] if len(people) > 2 else [])
        authors = " and ".join(names) if len(people) == 2 else " ".join(names)
        fields = [authors, entry.fields["title"], entry.fields["year"]]
        lines[key] = ", ".join(re.sub(r"[{}\\]", "", field) for field in fields)
    return lines


class Corrections(SphinxDirective):
    """``{corrections} article``: the entries of corrections.yml for one article, as a table.

    Each text is MyST, so that a right value is a glued result: ``right: "{evidence}`bytes_per_value`"``.
    """

    required_arguments = 1

    def run(self):
        """Write the table as Markdown and let MyST parse it, roles and links included."""
        path = Path(self.env.srcdir) / "corrections.yml"
        self.env.note_dependency(str(path))
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
        article = self.arguments[0]
        if article not in entries:
            raise ExtensionError(f"{self.env.docname}: corrections.yml has no {article!r}, only {', '.join(entries)}")
        if not entries[article]:
            return [nodes.paragraph("", "Nothing so far.")]
        lines = [
            ":::{list-table} What the first edition said, and what holds",
            ":header-rows: 1",
            "",
            "* - The first edition",
            "  - What holds",
            "  - Shown in",
        ]
        for entry in entries[article]:
            lines += [f"* - {entry['claim']}", f"  - {entry['right']}", f"  - {entry['shown']}"]
        table = nodes.container(classes=["corrections"])
        self.state.nested_parse(StringList([*lines, ":::"], source=str(path)), self.content_offset, table)
        return [table]


# --- pages ----------------------------------------------------------------------------------------------------------


def drop_duplicate_scripts(app, pagename, templatename, context, doctree) -> None:
    """Drop repeated inline scripts, which a browser refuses with an error (fixed in Sphinx 8: sphinx issue 13402).

    Thebe's scripts go altogether: it is switched off, and they name a server that no page of this book needs.
    """
    seen, kept = set(), []
    for script in context.get("script_files", []):
        body = getattr(script, "attributes", {}).get("body")
        thebe = "thebe" in str(getattr(script, "filename", "")) or "THEBE_JS_URL" in (body or "")
        if not thebe and (body is None or body not in seen):
            kept.append(script)
        seen.add(body)
    context["script_files"] = kept
    context["css_files"] = [style for style in context.get("css_files", []) if "thebe" not in str(style.filename)]


def date_page(app, pagename, templatename, context, doctree) -> None:
    """Show the date and commit of the page's last change; without git, or for an uncommitted page, show nothing."""
    context["last_updated"] = None
    if doctree is None or not shutil.which("git"):
        return
    command = ["git", "log", "-1", "--format=%cs, commit %h", "--", app.env.doc2path(pagename)]
    found = subprocess.run(command, cwd=app.srcdir, capture_output=True, text=True, check=False)
    if found.returncode == 0 and found.stdout.strip():
        context["last_updated"] = found.stdout.strip()


def setup(app):
    """Register everything above with Sphinx."""
    # Priorities: the cache path must stand before MyST-NB reads its configuration at builder-inited.
    app.connect("config-inited", set_execution_cache)
    app.connect("env-get-outdated", pages_quoting_changed)
    app.connect("env-before-read-docs", execute_pages)
    app.connect("source-read", refuse_typed_badges)
    app.connect("html-page-context", date_page)
    app.connect("html-page-context", link_cited)
    # after the theme and the launch buttons have added theirs
    app.connect("html-page-context", drop_duplicate_scripts, priority=900)
    app.add_role("evidence", EvidenceRole())
    app.add_role("reading-time", ReadingTimeRole())
    app.add_directive("corrections", Corrections)
    app.add_node(PendingEvidence)
    app.add_node(PendingReadingTime)
    app.add_post_transform(FillPlaceholders)
    # MathJax comes from here, not from _static/, whose scripts Jupyter Book loads on every page.
    app.config.html_static_path.append(str(Path(app.srcdir) / "_vendor"))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
