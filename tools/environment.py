"""Prepare .venv for the book: ``python tools/environment.py [--for book|test]``. Standard library only.

An installed torch is never replaced. If the python that runs this imports torch, .venv sees that very torch (its
site-packages are linked, so this works from a system python, conda or another venv), and torch, triton and numpy are
frozen while the rest is installed. Otherwise .venv gets torch 2.13.0, from the index in TORCH_INDEX where that is set,
and Triton where torch brought none: with Triton, kernels are cross-compiled; without it, recordings are shown.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

TORCH = "torch==2.13.0"
TRITON = "triton==3.9.0"
MARKER = "made-from"  # in a .venv that this script made, and may make again
FROZEN = ("torch", "triton", "triton-rocm", "pytorch-triton-rocm", "numpy")
REQUIREMENTS = {
    "book": ["requirements.txt"],
    "test": ["requirements.txt", "tests/requirements.txt", "tests/requirements-peers.txt"],
}

# Run by the interpreter in question: where its torch comes from and what must stay as it is.
PROBE = """
import importlib.metadata as metadata, importlib.util, json, sys
def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
torch = importlib.util.find_spec("torch")
print(json.dumps({
    "torch": torch.origin if torch else None,
    "triton": importlib.util.find_spec("triton") is not None,
    "frozen": {name: v for name in sys.argv[1:] if (v := version(name))},
    "sites": [p for p in sys.path if p.endswith(("site-packages", "dist-packages"))],
}))
"""


def probe(python: str | Path) -> dict:
    """Return what ``python`` sees: origin of torch (None: no torch), versions to freeze, site-packages folders."""
    command = [str(python), "-c", PROBE, *FROZEN]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def make_venv(venv: Path, parent: dict, marker: str) -> None:
    """Create ``venv``; where ``parent`` has a torch, let the venv see everything that the parent sees.

    A .pth line does what --system-site-packages cannot: a venv made from a venv does not see its packages.
    """
    if venv.exists():
        shutil.rmtree(venv)
    venv.mkdir()
    (venv / MARKER).write_text("")  # ours from the start; whole only at the end, so an interrupted one is made again
    inherit = parent["torch"] is not None
    command = [sys.executable, "-m", "venv", str(venv)]
    result = subprocess.run([*command, "--without-pip"] if inherit else command, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"cannot create {venv} (on Debian: apt install python3-venv):\n{result.stdout}{result.stderr}")
    if inherit:
        site_packages = next(venv.glob("lib/python*/site-packages"))
        lines = [f"import site; site.addsitedir({site!r})" for site in parent["sites"]]
        (site_packages / "parent.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
        if subprocess.run([str(venv / "bin/python"), "-m", "pip", "--version"], capture_output=True).returncode:
            run(venv / "bin/python", "-m", "ensurepip")
    (venv / MARKER).write_text(marker)


def install(python: Path, root: Path, purpose: str) -> None:
    """Install what ``purpose`` needs into the environment of ``python``; torch, triton and numpy found there stay."""
    constraints = root / ".venv" / "constraints.txt"
    if probe(python)["torch"] is None:
        index = os.environ.get("TORCH_INDEX")
        pip(python, TORCH, *(["--index-url", index] if index else []))
    # --no-deps: PyPI's Triton must never pull in another torch; no wheel (macOS): the book still builds
    if not probe(python)["triton"] and pip(python, "--no-deps", TRITON, check=False):
        print(f"{TRITON} is not to be had here: compiled results come from the recordings only")
    freeze = [f"{name}=={version}" for name, version in probe(python)["frozen"].items()]
    constraints.write_text("\n".join(freeze) + "\n", encoding="utf-8")
    files = [name for name in REQUIREMENTS[purpose] if (root / name).exists()]
    pip(python, "-c", str(constraints), *(word for name in files for word in ("-r", str(root / name))), cwd=root)


def pip(python: Path, *arguments: str, check: bool = True, cwd: Path | None = None) -> int:
    """Run ``pip install`` with ``arguments``."""
    options = ("--quiet", "--disable-pip-version-check")
    return run(python, "-m", "pip", "install", *options, *arguments, check=check, cwd=cwd)


def run(*command: str | Path, check: bool = True, cwd: Path | None = None) -> int:
    """Show and run a command; leave with its exit status if it fails and ``check`` is set."""
    words = [str(word) for word in command]
    print("+", " ".join(words), flush=True)
    status = subprocess.run(words, cwd=cwd, check=False).returncode
    if status and check:
        sys.exit(f"failed with status {status}: {' '.join(words)}")
    return status


def stamp(root: Path, purpose: str, parent: dict) -> str:
    """Return the digest of what the environment was made from."""
    names = [*REQUIREMENTS[purpose], "pyproject.toml", "tools/environment.py"]
    contents = [(root / name).read_bytes() for name in names if (root / name).exists()]
    index = os.environ.get("TORCH_INDEX")
    seen = json.dumps([str(root.resolve()), sys.version, parent["torch"], parent["frozen"], index])
    return hashlib.sha256(b"\0".join([*contents, seen.encode()])).hexdigest()


def prepare(root: Path, purpose: str) -> Path:
    """Make or update ``root``/.venv and return its python; a second call with nothing changed does nothing.

    A .venv that the reader made is used and never cleared.
    """
    venv = root / ".venv"
    python = venv / "bin" / "python"
    parent = probe(sys.executable)
    done = venv / f"prepared-{purpose}"
    wanted = stamp(root, purpose, parent)
    if python.exists() and done.exists() and done.read_text() == wanted:
        return python
    marker = json.dumps([str(root.resolve()), sys.executable, sys.version, parent["torch"]])
    started_inside = Path(sys.prefix).resolve() == venv.resolve()
    made_by_reader = venv.exists() and not (venv / MARKER).exists()
    if made_by_reader and not python.exists():
        sys.exit(f"{venv} is not of this script's making and has no {python.name}: move it away, nothing was deleted")
    if not (started_inside or made_by_reader):
        if not (python.exists() and (venv / MARKER).read_text() == marker):
            make_venv(venv, parent, marker)
        if parent["torch"] and probe(python)["torch"] != parent["torch"]:
            sys.exit(f"{python} imports torch from {probe(python)['torch']}, not from {parent['torch']}")
    install(python, root, purpose)
    done.write_text(wanted)
    return python


def main() -> None:
    """Read the command line and prepare the environment beside this file's folder (or --root)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--for", dest="purpose", choices=sorted(REQUIREMENTS), default="book")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent)
    options = parser.parse_args()
    if sys.version_info < (3, 10):  # noqa: UP036 - what an old python must be told
        sys.exit(f"Python 3.10 or later is needed, this is {sys.version.split()[0]} ({sys.executable})")
    prepare(options.root, options.purpose)


if __name__ == "__main__":
    main()
