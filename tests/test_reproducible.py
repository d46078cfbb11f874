"""A clean build in another folder and the book that was built here differ only where the README says."""

import filecmp
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def clean_build(folder: Path) -> Path:
    """Build a copy of this checkout, with its history, and return what was built."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    main = "from jupyter_book.cli.main import main; main()"
    command = [sys.executable, "-c", main, "build", ".", "-W", "-n", "--keep-going"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return folder / "_build/html"


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.built
@pytest.mark.slow
def test_two_clean_builds_differ_only_where_the_readme_says(tmp_path):
    """``make test-all`` has just built the first; a file that only that one has is left over: ``make clean``."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a checkout: there is no commit to build twice")
    first = ROOT / "_build/html"
    assert (first / "index.html").exists(), "build the book first: make book"
    second = clean_build(tmp_path / "a second folder")
    assert files(first) == files(second)
    _, differing, failed = filecmp.cmpfiles(first, second, files(first), shallow=False)
    assert not failed
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = re.search(r"Two clean builds.*?\n\n(.*?)\n\n", readme, re.DOTALL)[1]
    assert set(differing) <= set(re.findall(r"`([^`]+)`", section))
