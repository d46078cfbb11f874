"""Shared by all tests: where the book is, a toy book that uses the real configuration, products that run compiled."""

import os
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

# Before torch loads OpenMP, here and in whatever the tests start: several workers share the processors, and a thread
# that spins while it waits keeps them from the others. A rehearsal took seven times as long beside two more.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
from chipmath.bench import PINNED
from chipmath.crosscompile import CompileError

ROOT = Path(__file__).resolve().parent.parent

PAGE = """---
file_format: mystnb
kernelspec: {name: python3, display_name: Python 3}
---
# A page

```{code-cell} ipython3
from myst_nb import glue
from chipmath.evidence import Cited, Compiled, Computed, Measured, Table
glue("ratio", Computed(33 / 32, ".5f"), display=False)
glue("bare", 33 / 32, display=False)
```

A block takes {evidence}`ratio` bytes a value.
"""


class ToyBook:
    """A book of two pages in a folder of its own, built with the real ``_config.yml``, ``_ext/`` and package."""

    def __init__(self, root: Path):
        self.root = root
        for name in ("_config.yml", "_ext", "_vendor", "_static", "CITATION.cff"):
            source = ROOT / name
            shutil.copytree(source, root / name) if source.is_dir() else shutil.copy(source, root / name)
        generated = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / "kernels", root / "kernels", ignore=generated)
        (root / "_toc.yml").write_text("format: jb-book\nroot: intro\nchapters:\n- file: page\n- file: references\n")
        (root / "intro.md").write_text("# Intro\n\nSee {doc}`page`.\n")
        (root / "references.md").write_text("# References\n\n```{bibliography}\n:all:\n```\n")
        (root / "references.bib").write_text("@misc{spec2023, author={Ann Bee}, title={A Title}, year={2023}}\n")
        self.page = root / "page.md"
        self.page.write_text(PAGE)

    def add(self, text: str) -> None:
        """Append text to the page."""
        self.page.write_text(self.page.read_text() + text)

    def build(self, *options: str) -> tuple[int, str]:
        """Build as the Makefile does, with more options; return exit status and output."""
        # Not the script beside the interpreter: where a parent environment has jupyter-book there is none.
        program = "from jupyter_book.cli.main import main; main()"
        command = [sys.executable, "-c", program, "build", ".", "-W", "-n", "--keep-going", *options]
        result = subprocess.run(command, cwd=self.root, capture_output=True, text=True)
        return result.returncode, result.stdout + result.stderr

    def html(self, name: str = "page") -> str:
        """Return a built page."""
        return (self.root / f"_build/html/{name}.html").read_text(encoding="utf-8")


@pytest.fixture
def toy_book(tmp_path):
    """Return a fresh toy book."""
    return ToyBook(tmp_path)


# Files that take minutes: they start first, or the last of them would keep one worker busy while the others wait.
LONG = ("test_recordings", "test_reproducible", "test_quantize", "test_bench", "test_portable", "test_environment")
LONG += ("test_extension", "test_quantize_gpu", "test_cdna", "test_ptx", "test_browser", "test_measurements")


def pytest_collection_modifyitems(items):
    """Long files first; within a file, the order stays."""
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Skip, and say why, where another Triton than the recordings' emits what the oracles do not model, or nothing.

    They execute what the pinned compilers emit. A wrong byte is as red as ever, whichever Triton it is from.
    """
    try:
        return (yield)
    except NotImplementedError as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        if raised_in.parent.name != "oracles" or _triton() == PINNED["Triton"]:
            raise
        pytest.skip(f"code of Triton {_triton()} that is not modelled here: {error}")
    except CompileError as error:
        if "for gfx942: " not in str(error) or not _triton().startswith("3.6."):
            raise
        pytest.skip(f"Triton {_triton()} converts to FP8 for gfx942 only before it has compiled for gfx950: {error}")


@pytest.fixture
def report(record_property):
    """``report(line)``: what a test counted is part of its result, and stands below all tests, whoever ran it."""
    return lambda line: record_property(COUNTED, line)


COUNTED = "counted"


def pytest_terminal_summary(terminalreporter):
    """Every line that tests reported."""
    tests = [test for outcome in ("passed", "failed") for test in terminalreporter.stats.get(outcome, [])]
    lines = [line for test in tests for name, line in test.user_properties if name == COUNTED]
    if lines:
        terminalreporter.section("what was counted")
    for line in sorted(lines):
        terminalreporter.line(line)


def _triton() -> str:
    import triton

    return triton.__version__


@pytest.fixture
def compiled(monkeypatch):
    """``compiled(arch)``: from here on, products of CPU tensors execute the code that is compiled for a chip.

    It returns the launchers of the kernels, by name; ``edit`` changes the code of ``edited``, the products.
    """
    pytest.importorskip("triton")
    from chipmath import matmul_gpu, matmul_kernels
    from oracles.execute import Launcher

    names = ("dot_scaled", "fp16_relative", "folded_128", "dequantize", "fold")
    kernels = {name: getattr(matmul_kernels, name) for name in names}

    def use(arch, edit=str, edited=names[:3]):
        if arch == "gfx942" and matmul_gpu._triton_release() < (3, 9):
            pytest.skip("Triton before 3.9 has no products for gfx942 that are right")
        monkeypatch.setattr(matmul_gpu, "_arch", lambda where: arch)
        edits = {name: edit if name in edited else str for name in names}
        launchers = {name: Launcher(kernel, arch, edits[name]) for name, kernel in kernels.items()}
        for name, launcher in launchers.items():
            monkeypatch.setattr(matmul_kernels, name, launcher)
        return launchers

    return use
