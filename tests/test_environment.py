"""Which torch the book's environment ends up with, resolved by pip against stub distributions (no index is asked)."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CUDA_BUILD = ("torch", "2.13.0", ["triton==3.7.1"])
CPU_BUILD = ("torch", "2.13.0", [])
NEWEST = ("torch", "2.99.0", [])  # an upgrade would take it
ROCM_BUILD = ("torch", "2.9.1+rocm7.1", ["pytorch-triton-rocm==3.5.1"])


def wheel(folder: Path, name: str, version: str, requires: list[str]) -> Path:
    """Write a stub wheel: a module of the distribution's name and its metadata."""
    module = "triton" if "triton" in name else name.replace("-", "_")
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {requirement}" for requirement in requires]
    path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{module}/__init__.py", f"__version__ = {version!r}\n")
        archive.writestr(f"{info}/METADATA", "\n".join(lines) + "\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def requirements() -> list[str]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith(("#", "-e"))]


@pytest.fixture
def shop(tmp_path):
    """A folder of stub wheels for everything the book requires, and a book that is only its requirements."""
    index = tmp_path / "index"
    book = tmp_path / "book"
    index.mkdir()
    book.mkdir()
    for line in requirements():
        name, version = re.match(r"([\w-]+)[=>]=([\w.]+)", line).groups()
        if name != "torch":
            wheel(index, name, version, [])
    wheel(index, "numpy", "9.9", [])
    for version in ("3.7.1", "3.9.0", "3.99.0"):
        wheel(index, "triton", version, [])
    (book / "requirements.txt").write_text("\n".join(requirements()) + "\n")
    return index, book


def run(command, index, **variables):
    environment = os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "PIP_CONFIG_FILE": os.devnull}
    environment.pop("TORCH_INDEX", None)
    environment.pop("PYTHONPATH", None)
    result = subprocess.run([str(c) for c in command], env=environment | variables, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def prepare(python, index, book):
    return run([python, ROOT / "tools/environment.py", "--root", book], index)


def versions(python, index):
    return dict(line.split("==") for line in run([python, "-m", "pip", "list", "--format=freeze"], index).split())


@pytest.fixture
def parent(tmp_path):
    """An empty venv to prepare from, as a stranger's python or container would be."""
    run([sys.executable, "-m", "venv", tmp_path / "parent"], tmp_path)
    return tmp_path / "parent/bin/python"


def test_without_torch_the_pinned_one_and_triton_are_installed(shop, parent):
    index, book = shop
    wheel(index, *CPU_BUILD)
    wheel(index, *NEWEST)
    prepare(parent, index, book)
    found = versions(book / ".venv/bin/python", index)
    assert (found["torch"], found["triton"]) == ("2.13.0", "3.9.0")
    assert "torch" not in versions(parent, index)


def test_triton_that_torch_requires_stays(shop, parent):
    index, book = shop
    wheel(index, *CUDA_BUILD)
    wheel(index, *NEWEST)
    prepare(parent, index, book)
    assert versions(book / ".venv/bin/python", index)["triton"] == "3.7.1"


def install_rocm(parent, index):
    wheel(index, "pytorch-triton-rocm", "3.5.1", [])
    wheel(index, *ROCM_BUILD)
    run([parent, "-m", "pip", "install", "-q", "torch==2.9.1+rocm7.1", "numpy==1.26"], index)
    wheel(index, *NEWEST)


def test_rocm_torch_of_a_parent_venv_is_seen_and_stays(shop, parent):
    index, book = shop
    install_rocm(parent, index)
    before = versions(parent, index)
    prepare(parent, index, book)
    python = book / ".venv/bin/python"
    found = versions(python, index)
    assert {k: found.get(k) for k in ("torch", "pytorch-triton-rocm", "numpy", "triton")} == {
        "torch": "2.9.1+rocm7.1",
        "pytorch-triton-rocm": "3.5.1",
        "numpy": "1.26",
        "triton": None,
    }
    assert "jupyter-book" in found
    assert versions(parent, index) == before
    origin = run([python, "-c", "import torch; print(torch.__file__)"], index)
    assert origin.startswith(str(parent.parent.parent))


def test_plain_pip_install_leaves_rocm_torch(shop, parent):
    index, book = shop
    install_rocm(parent, index)
    run([parent, "-m", "pip", "install", "-q", "-r", book / "requirements.txt"], index)
    assert versions(parent, index)["torch"] == "2.9.1+rocm7.1"


def test_second_call_does_nothing_until_a_requirement_changes(shop, parent):
    index, book = shop
    wheel(index, *CPU_BUILD)
    assert "pip install" in prepare(parent, index, book)
    assert "pip install" not in prepare(parent, index, book)
    wheel(index, "extra", "1.0", [])
    (book / "requirements.txt").write_text("\n".join([*requirements(), "extra==1.0"]) + "\n")
    prepare(parent, index, book)
    assert versions(book / ".venv/bin/python", index)["extra"] == "1.0"


def test_a_venv_of_the_readers_own_is_used_and_not_cleared(shop, parent):
    index, book = shop
    wheel(index, *CPU_BUILD)
    wheel(index, "notes", "1.0", [])
    run([sys.executable, "-m", "venv", book / ".venv"], index)
    python = book / ".venv/bin/python"
    run([python, "-m", "pip", "install", "-q", "notes", "torch"], index)
    wheel(index, *NEWEST)
    prepare(parent, index, book)
    found = versions(python, index)
    assert found["notes"] == "1.0"
    assert found["torch"] == "2.13.0"
    assert "jupyter-book" in found


def test_an_interrupted_venv_is_made_again_and_a_strangers_folder_is_kept(shop, parent):
    index, book = shop
    wheel(index, *CPU_BUILD)
    venv = book / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python").symlink_to(sys.executable)
    (venv / "made-from").write_text("")  # as an interrupted run leaves it: a python without pip of its own
    prepare(parent, index, book)
    assert versions(venv / "bin/python", index)["torch"] == "2.13.0"

    shutil.rmtree(venv)
    venv.mkdir()
    (venv / "precious.txt").write_text("kept")
    with pytest.raises(AssertionError, match="nothing was deleted"):
        prepare(parent, index, book)
    assert (venv / "precious.txt").read_text() == "kept"


def test_torch_index_is_where_torch_comes_from(shop, parent, tmp_path):
    """TORCH_INDEX names a simple index: torch is found there although the shop has none."""
    index, book = shop
    pages = tmp_path / "simple/torch"
    pages.mkdir(parents=True)
    name = wheel(pages, *CPU_BUILD).name
    (pages / "index.html").write_text(f'<a href="{name}">{name}</a>')
    address = (tmp_path / "simple").as_uri()
    run([parent, ROOT / "tools/environment.py", "--root", book], index, TORCH_INDEX=address, PIP_NO_INDEX="")
    assert versions(book / ".venv/bin/python", index)["torch"] == "2.13.0"


def test_requirements_name_no_triton_and_only_a_lower_bound_for_torch():
    names = {re.match(r"[\w-]+", line).group(): line for line in requirements()}
    assert not [name for name in names if "triton" in name]
    assert re.fullmatch(r"torch>=[\d.]+", names["torch"])
    assert (ROOT / "requirements.txt").read_text().rstrip().endswith("\n-e .")
