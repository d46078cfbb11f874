"""Execution: a cache that notices every change that can change a result; pages executed side by side, with progress."""

from __future__ import annotations

import asyncio
import hashlib
import os
import platform
import shutil
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from myst_nb.core.read import create_nb_reader
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from sphinx.errors import ExtensionError
from sphinx.util import logging

logger = logging.getLogger(__name__)

VERSIONED = ("torch", "triton", "triton-rocm", "pytorch-triton-rocm", "numpy", "matplotlib")
VISIBLE_DEVICES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
GPU_NODES = ("nvidia[0-9]*", "dxg")  # NVIDIA's, and that of Windows' graphics under WSL
KEPT_CACHES = 4
HEARTBEAT_SECONDS = 5


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
    """Name the GPUs that the operating system shows, without importing torch (which takes seconds).

    In a container or under WSL the device node may be all that there is to see.
    """
    nvidia = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    lines = [line for path in nvidia for line in path.read_text().splitlines()]
    found = [line for line in lines if line.startswith(("Model", "GPU UUID"))]
    for path in sorted(Path("/sys/class/kfd/kfd/topology/nodes").glob("*/properties")):
        properties = dict(line.split(maxsplit=1) for line in path.read_text().splitlines() if " " in line)
        if properties.get("gfx_target_version", "0") != "0":  # a CPU node has version 0
            found.append(f"gfx_target_version {properties['gfx_target_version']}")
    return found + [str(node) for pattern in GPU_NODES for node in sorted(Path("/dev").glob(pattern))]


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
    pages = [page for name in _order(docnames, app.config.executed_first) if (page := _uncached(env, cache, name))]
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


def _order(docnames, first: list[str]) -> list[str]:
    """The pages by name, but those that take longest first: begun last, one would run on when all others are done."""
    return sorted(docnames, key=lambda name: (name not in first, name))


def _uncached(env, cache, docname: str) -> Execution | None:
    notebook = _notebook(env, docname)
    if notebook is None:
        return None
    try:
        cache.match_cache_notebook(notebook)
    except KeyError:
        return Execution(docname, Path(env.doc2path(docname)), notebook)
    return None


def _notebook(env, docname: str):
    """Return a page as a notebook that is not executed; None for a page without cells."""
    path = Path(env.doc2path(docname))
    if not path.exists():
        return None
    text = path.read_text(encoding="utf-8")
    reader = create_nb_reader(str(path), env.myst_config, env.mystnb_config, text)
    if reader is None:
        return None
    notebook = reader.read(text)
    # A page that is not executed here, or elsewhere than in this cache, would show outputs that nothing stands behind.
    if own := [name for name in notebook.metadata.get("mystnb", {}) if name.startswith("execution_")]:
        raise ExtensionError(f"{docname}: {', '.join(own)}: how pages are executed is set in _config.yml, for all")
    # Outputs saved in the file are of another day; a cell tagged skip-execution would keep them.
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    return notebook


def executed_cells(app, docname: str) -> list:
    """Return the code cells of an executed page with their outputs, as the cache holds them."""
    notebook = _notebook(app.env, docname)
    if notebook is None or app.config.nb_execution_mode != "cache":
        return []
    _, executed = get_cache(app.config.nb_execution_cache_path).merge_match_into_notebook(notebook)
    return [cell for cell in executed.cells if cell.cell_type == "code"]


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
