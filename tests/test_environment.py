"""Which torch the book's environment ends up with, resolved by pip against stub distributions (no index is asked)."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import environment
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


@pytest.fixture(scope="module")
def new_venv(tmp_path_factory):
    """A function that makes an empty venv and returns its python; copies of one, which works and saves seconds."""
    template = tmp_path_factory.mktemp("template") / "venv"
    run([sys.executable, "-m", "venv", template], template)

    def make(folder):
        return shutil.copytree(template, folder, symlinks=True) / "bin/python"

    return make


@pytest.fixture
def parent(tmp_path, new_venv):
    """An empty venv to prepare from, as a stranger's python or container would be."""
    return new_venv(tmp_path / "parent")


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


def install_torch(parent, index):
    """A torch alone, as a container may have it; a .venv that sees it is also the quickest to make."""
    wheel(index, *CPU_BUILD)
    run([parent, "-m", "pip", "install", "-q", "torch==2.13.0"], index)


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
    install_torch(parent, index)
    assert "pip install" in prepare(parent, index, book)
    assert "pip install" not in prepare(parent, index, book)
    wheel(index, "extra", "1.0", [])
    (book / "requirements.txt").write_text("\n".join([*requirements(), "extra==1.0"]) + "\n")
    prepare(parent, index, book)
    assert versions(book / ".venv/bin/python", index)["extra"] == "1.0"


def test_a_venv_of_the_readers_own_is_used_and_not_cleared(shop, parent, new_venv):
    index, book = shop
    wheel(index, *CPU_BUILD)
    wheel(index, "notes", "1.0", [])
    python = new_venv(book / ".venv")
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
    (tmp_path / "nothing").mkdir()
    addresses = {
        "TORCH_INDEX": (tmp_path / "simple").as_uri(),
        "PIP_INDEX_URL": (tmp_path / "nothing").as_uri(),  # for all else, so that no index of the world is asked
    }
    run([parent, ROOT / "tools/environment.py", "--root", book], index, PIP_NO_INDEX="", **addresses)
    assert versions(book / ".venv/bin/python", index)["torch"] == "2.13.0"


def test_requirements_name_no_triton_and_only_a_lower_bound_for_torch():
    names = {re.match(r"[\w-]+", line).group(): line for line in requirements()}
    assert not [name for name in names if "triton" in name]
    assert re.fullmatch(r"torch>=[\d.]+", names["torch"])
    assert (ROOT / "requirements.txt").read_text().rstrip().endswith("\n-e .")


def test_an_installed_package_has_all_its_files():
    """pip install git+… copies what pyproject.toml names; an experiment without its source file cannot run."""
    packages = ROOT / "kernels"
    patterns = setuptools_of_pyproject()["package-data"]
    named = {path for package, globs in patterns.items() for pattern in globs
             for path in (packages / package.replace(".", "/")).glob(pattern)}  # fmt: skip
    files = {path for path in (packages / "chipmath").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert not sorted(path.name for path in files - named if path.suffix != ".py")


def setuptools_of_pyproject() -> dict:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML: the files of the package are unchecked")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def install_in(python, index, *arguments):
    run([python, "-m", "pip", "install", "-q", *arguments], index)


def site_packages(python) -> Path:
    return next(Path(python).parent.parent.glob("lib/python*/site-packages"))


def test_what_wants_another_numpy_or_torch_is_refused(shop, parent):
    """The constraints: without them pip would put numpy 9.9 or torch 2.99 over the parent's."""
    index, book = shop
    install_rocm(parent, index)
    for wanted in ("numpy>=2", "torch>=2.50"):
        name = f"wants-{wanted[:5]}"
        wheel(index, name, "1.0", [wanted])
        (book / "requirements.txt").write_text("\n".join([*requirements(), name]) + "\n")
        with pytest.raises(AssertionError, match="conflicting dependencies"):
            prepare(parent, index, book)
        found = versions(book / ".venv/bin/python", index)
        assert (found["torch"], found["numpy"]) == ("2.9.1+rocm7.1", "1.26")


def test_triton_pulls_nothing_in(shop, parent):
    index, book = shop
    install_torch(parent, index)
    wheel(index, "triton", "3.9.0", ["stray"])
    wheel(index, "stray", "1.0", [])
    prepare(parent, index, book)
    found = versions(book / ".venv/bin/python", index)
    assert found["triton"] == "3.9.0"
    assert "stray" not in found


def test_inside_and_outside_its_venv_make_does_the_same(shop, parent):
    index, book = shop
    install_torch(parent, index)
    prepare(parent, index, book)
    inside = book / ".venv/bin/python"
    assert "pip install" not in prepare(inside, index, book)
    assert "pip install" not in prepare(parent, index, book)
    wheel(index, "notes", "1.0", [])
    install_in(inside, index, "notes")
    (book / "requirements.txt").write_text("\n".join([*requirements(), "notes"]) + "\n")
    assert "pip install" in prepare(inside, index, book)
    assert versions(inside, index)["notes"] == "1.0"
    assert "pip install" not in prepare(parent, index, book)


def test_started_inside_it_updates_its_venv_and_does_not_make_it_again(shop, parent):
    index, book = shop
    install_torch(parent, index)
    wheel(index, "notes", "1.0", [])
    prepare(parent, index, book)
    inside = book / ".venv/bin/python"
    install_in(inside, index, "notes")
    (book / ".venv/made-from").write_text("another python, as `make` started outside may have been")
    prepare(inside, index, book)
    assert versions(inside, index)["notes"] == "1.0"


def test_a_torch_put_over_the_parents_is_refused(shop, parent):
    index, book = shop
    install_rocm(parent, index)
    prepare(parent, index, book)
    site = site_packages(book / ".venv/bin/python")
    run([parent, "-m", "pip", "install", "-q", "--no-deps", "--target", site, "torch==2.99.0"], index)
    with pytest.raises(AssertionError, match=r"imports torch from .*book/.venv/lib.*, not from .*parent/lib"):
        prepare(parent, index, book)


@pytest.mark.parametrize("start", ["outside", "inside"])
def test_a_readers_venv_without_torch_gets_none_beside_the_parents(shop, parent, new_venv, start):
    index, book = shop
    install_rocm(parent, index)
    python = new_venv(book / ".venv")
    if start == "inside":  # the base of both venvs is the python of this test: let it seem to be the parent
        (site_packages(python) / "base.pth").write_text(f"import sys; sys._base_executable = {str(parent)!r}\n")
    with pytest.raises(
        AssertionError, match=r"book/.venv is not of this .* no torch, while .*parent/lib.*Move it away"
    ):
        prepare(parent if start == "outside" else python, index, book)
    assert set(versions(python, index)) <= {"pip", "setuptools"}


def test_an_installation_that_changes_torch_is_told(tmp_path, monkeypatch):
    """A second line of defence: pip did what its constraints forbid."""
    folder = {"before": "/a/torch/__init__.py", "after": "/b/torch/__init__.py"}
    state = ["before"]
    monkeypatch.setattr(environment, "find_or_make_venv", lambda venv, root: venv / "bin/python")
    monkeypatch.setattr(environment, "probe", lambda python: {"torch": folder[state[-1]]})
    monkeypatch.setattr(environment, "install", lambda python, root, purpose: state.append("after"))
    with pytest.raises(SystemExit, match=r"put a torch at /b/torch/__init__.py over the one at /a/torch"):
        environment.prepare(tmp_path, "book")
    assert not list(tmp_path.rglob("prepared-*"))


def test_a_torch_without_metadata_is_not_shadowed(shop, parent):
    """Built from source and not installed: pip would not know of it and would take the newest from the index."""
    index, book = shop
    wheel(index, *NEWEST)
    source = site_packages(parent) / "torch"
    source.mkdir()
    (source / "__init__.py").write_text("__version__ = '2.14.0a0+gitabc'\n")
    prepare(parent, index, book)
    python = book / ".venv/bin/python"
    assert run([python, "-c", "import torch; print(torch.__version__)"], index).strip() == "2.14.0a0+gitabc"
    assert versions(python, index)["torch"] == "2.14.0a0+gitabc"
    assert "pip install" not in prepare(parent, index, book)


def test_settings_that_send_pip_elsewhere_are_not_followed(shop, parent, tmp_path):
    index, book = shop
    install_rocm(parent, index)
    names = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT")
    run(
        [parent, ROOT / "tools/environment.py", "--root", book],
        index,
        PIP_USER="1",
        **{name: str(tmp_path / name) for name in names},
    )
    assert "jupyter-book" in versions(book / ".venv/bin/python", index)
    assert not [name for name in names if (tmp_path / name).exists()]


def test_a_pip_configuration_for_the_users_folder_is_not_followed(shop, parent, tmp_path):
    index, book = shop
    install_rocm(parent, index)
    (tmp_path / "pip.conf").write_text("[install]\nuser = true\n")
    run([parent, ROOT / "tools/environment.py", "--root", book], index, PIP_CONFIG_FILE=str(tmp_path / "pip.conf"))
    assert "jupyter-book" in versions(book / ".venv/bin/python", index)


@pytest.mark.parametrize("watched", [True, False])
def test_downloads_show_their_progress_on_a_terminal(monkeypatch, watched):
    commands = []
    monkeypatch.setattr(environment, "run", lambda *command, **rest: commands.append(command))
    monkeypatch.setattr(environment.sys.stdout, "isatty", lambda: watched)
    environment.pip("python", "torch")
    assert ("--quiet" in commands[0]) == (not watched)


def test_a_link_to_a_venv_is_used(shop, parent, new_venv, tmp_path):
    index, book = shop
    wheel(index, *CPU_BUILD)
    new_venv(tmp_path / "elsewhere")
    (book / ".venv").symlink_to(tmp_path / "elsewhere")
    prepare(parent, index, book)
    assert "jupyter-book" in versions(tmp_path / "elsewhere/bin/python", index)
    assert (book / ".venv").is_symlink()


@pytest.mark.parametrize("kind", ["file", "dangling link", "link to a folder"])
def test_what_is_no_venv_is_told(shop, parent, tmp_path, kind):
    index, book = shop
    venv = book / ".venv"
    venv.write_text("kept") if kind == "file" else venv.symlink_to(book if kind == "link to a folder" else "nowhere")
    with pytest.raises(
        AssertionError, match=r"\.venv.* has no bin/python: move it away, nothing was deleted"
    ) as caught:
        prepare(parent, index, book)
    assert "Traceback" not in str(caught.value)
    assert (book / "requirements.txt").exists()


def test_a_broken_python_is_told(shop, parent):
    index, book = shop
    (book / ".venv/bin").mkdir(parents=True)
    (book / ".venv/bin/python").write_text("#!/bin/sh\necho cannot open shared object >&2; exit 127\n")
    (book / ".venv/bin/python").chmod(0o755)
    with pytest.raises(AssertionError, match=r"bin/python does not run:\s+cannot open shared object") as caught:
        prepare(parent, index, book)
    assert "Traceback" not in str(caught.value)


def test_packages_of_a_parent_that_has_the_book_are_used(shop, parent):
    """Then .venv/bin has no script of theirs: what make runs must be modules."""
    index, book = shop
    install_rocm(parent, index)
    install_in(parent, index, "-r", book / "requirements.txt")
    prepare(parent, index, book)
    python = book / ".venv/bin/python"
    origin = run([python, "-c", "import jupyter_book; print(jupyter_book.__file__)"], index)
    assert origin.startswith(str(parent.parent.parent))
    assert not (python.parent / "jupyter-book").exists()


@pytest.mark.parametrize("target", ["book", "test", "test-all"])
def test_make_runs_nothing_of_the_venv_but_its_python(target):
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ".venv/bin/python" in done.stdout
    assert set(re.findall(r"\.venv/bin/(\S+)", done.stdout)) == {"python"}


def test_the_venv_of_a_moved_checkout_is_made_again(shop, parent, tmp_path):
    index, book = shop
    wheel(index, *CPU_BUILD)
    prepare(parent, index, book)
    moved = book.rename(tmp_path / "a moved book")
    prepare(parent, index, moved)
    run([moved / ".venv/bin/pip", "--version"], index)  # a script, which names its python by its whole path
    assert versions(moved / ".venv/bin/python", index)["torch"] == "2.13.0"
    assert "pip install" not in prepare(parent, index, moved)
