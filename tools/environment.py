"""Prepare .venv for the book: ``python tools/environment.py [--for book|test]``. Standard library only.

An installed torch is never replaced. If the python that runs this imports torch, .venv sees that very torch (its
site-packages are linked, so this works from a system python, conda or another venv), and torch, triton and numpy are
frozen while the rest is installed. Otherwise .venv gets torch 2.13.0, from the index in TORCH_INDEX where that is set,
and Triton where torch brought none: with Triton, kernels are cross-compiled; without it, recordings are shown.

A .venv that the reader made, or linked to, is used and never cleared.
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
PLACES = ("PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT")  # settings that make pip install elsewhere than in .venv
FROZEN = ("torch", "triton", "triton-rocm", "pytorch-triton-rocm", "numpy")
REQUIREMENTS = {
    "book": ["requirements.txt"],
    "test": ["requirements.txt", "tests/requirements.txt", "tests/requirements-peers.txt"],
}

# Run by the interpreter in question: where its torch comes from and what must stay as it is.
PROBE = """
import importlib.metadata as metadata, importlib.util, json, sys, sysconfig
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
    "site": sysconfig.get_path("purelib"),
    "python": sys.executable,
    "version": sys.version,
}))
"""


def probe(python: str | Path) -> dict:
    """Return what ``python`` sees: origin of torch (None: no torch), versions to freeze, site-packages folders."""
    result = subprocess.run([str(python), "-c", PROBE, *FROZEN], capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{python} does not run:\n{result.stderr}")
    return json.loads(result.stdout)


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
    seen = probe(python)
    if seen["torch"] is None:
        index = os.environ.get("TORCH_INDEX")
        pip(python, TORCH, *(["--index-url", index] if index else []))
    elif "torch" not in seen["frozen"]:
        state_version_of_torch(python, Path(seen["site"]))
    # --no-deps: PyPI's Triton must never pull in another torch; no wheel (macOS): the book still builds
    if not probe(python)["triton"] and pip(python, "--no-deps", TRITON, check=False):
        print(f"{TRITON} is not to be had here: compiled results come from the recordings only")
    freeze = [f"{name}=={version}" for name, version in probe(python)["frozen"].items()]
    constraints.write_text("\n".join(freeze) + "\n", encoding="utf-8")
    files = [name for name in REQUIREMENTS[purpose] if (root / name).exists()]
    pip(python, "-c", str(constraints), *(word for name in files for word in ("-r", str(root / name))), cwd=root)


def state_version_of_torch(python: Path, site: Path) -> None:
    """Tell pip, in ``site``, of a torch that has no distribution metadata: it would install another one over it.

    So is a torch that was built from source and is found through PYTHONPATH.
    """
    command = [str(python), "-c", "import torch; print(torch.__version__)"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{python} finds a torch that does not import:\n{result.stderr}")
    version = result.stdout.strip()
    info = site / f"torch-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n", encoding="utf-8")
    print(f"torch {version} has no distribution metadata; {info} tells pip that it is here", flush=True)


def pip(python: Path, *arguments: str, check: bool = True, cwd: Path | None = None) -> int:
    """Run ``pip install`` with ``arguments``; whatever the reader's settings say, it installs beside ``python``."""
    # Someone who watches sees what is fetched and how far it is; a log would get a line a package.
    quiet = () if sys.stdout.isatty() else ("--quiet",)
    options = (*quiet, "--disable-pip-version-check")
    # PIP_USER=0 also overrides a configuration file.
    environment = {name: value for name, value in os.environ.items() if name not in PLACES} | {"PIP_USER": "0"}
    return run(python, "-m", "pip", "install", *options, *arguments, check=check, cwd=cwd, env=environment)


def run(*command: str | Path, check: bool = True, cwd: Path | None = None, env: dict[str, str] | None = None) -> int:
    """Show and run a command; leave with its exit status if it fails and ``check`` is set."""
    words = [str(word) for word in command]
    print("+", " ".join(words), flush=True)
    status = subprocess.run(words, cwd=cwd, env=env, check=False).returncode
    if status and check:
        sys.exit(f"failed with status {status}: {' '.join(words)}")
    return status


def stamp(root: Path, purpose: str, python: Path) -> str:
    """Return the digest of what was installed into the environment of ``python``, and of what is frozen there.

    It says nothing of the python that runs this, so that `make` gives the same inside and outside .venv.
    """
    names = [*REQUIREMENTS[purpose], "pyproject.toml", "tools/environment.py"]
    contents = [(root / name).read_bytes() for name in names if (root / name).exists()]
    seen = probe(python)
    facts = json.dumps([str(root.resolve()), *(seen[name] for name in ("version", "torch", "triton", "frozen"))])
    return hashlib.sha256(b"\0".join([*contents, facts.encode()])).hexdigest()


def find_or_make_venv(venv: Path, root: Path) -> Path:
    """Return the python of ``venv``, which sees the torch of the python that runs this, if that has one."""
    python = venv / "bin" / "python"
    started_inside = Path(sys.prefix).resolve() == venv.resolve()
    # From inside, the python that .venv was made from may be the one with a torch: on a GPU machine it often is.
    parent = probe(sys._base_executable if started_inside else sys.executable)
    made_by_reader = venv.is_symlink() or (venv.exists() and not (venv / MARKER).exists())
    if started_inside or made_by_reader:
        check_venv_as_it_is(venv, python, parent)
        return python
    marker = json.dumps([str(root.resolve()), sys.prefix, sys.version, parent["torch"]])
    if not (python.exists() and (venv / MARKER).read_text() == marker):
        make_venv(venv, parent, marker)
    if parent["torch"] and (torch := probe(python)["torch"]) != parent["torch"]:
        sys.exit(f"{python} imports torch from {torch}, not from {parent['torch']}: remove {venv}, it is made again")
    return python


def check_venv_as_it_is(venv: Path, python: Path, parent: dict) -> None:
    """Leave if ``venv``, which is not to be made again, is none, or would be given a torch beside ``parent``'s."""
    if not python.exists():
        what = f"{venv}, a link to {os.readlink(venv)}," if venv.is_symlink() else str(venv)
        sys.exit(f"{what} is not of this script's making and has no bin/python: move it away, nothing was deleted")
    if parent["torch"] and probe(python)["torch"] is None:
        sys.exit(
            f"{venv} is not of this script's making and has no torch, while {parent['python']} has {parent['torch']}. "
            f"Move it away, and one is made that sees this torch; or install a torch of your choice into it"
        )


def prepare(root: Path, purpose: str) -> Path:
    """Make or update ``root``/.venv and return its python; a second call with nothing changed does nothing."""
    venv = root / ".venv"
    python = find_or_make_venv(venv, root)
    done = venv / f"prepared-{purpose}"
    if done.exists() and done.read_text() == stamp(root, purpose, python):
        return python
    before = probe(python)["torch"]
    install(python, root, purpose)
    after = probe(python)["torch"]
    if before not in (None, after):
        sys.exit(f"the installation put a torch at {after} over the one at {before}: remove {venv}")
    done.write_text(stamp(root, purpose, python))
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
