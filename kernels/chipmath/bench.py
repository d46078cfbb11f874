"""Run the book's experiments and record them: PYTHONPATH=kernels python -m chipmath.bench --list

The only writer of recordings. Compiled experiments need the pinned compilers and no GPU, computed ones a CPU and some
minutes, measured ones a GPU with torch and Triton (CUDA or ROCm). A result that fails its own check is not written, an
interrupted run leaves nothing behind, and no clock is ever set.

  python -m chipmath.bench --compiled              all compiled experiments, into kernels/chipmath/recorded/
  python -m chipmath.bench copy_bandwidth          one measured experiment
  python -m chipmath.bench --measured              all of them, each in a process of its own
  python -m chipmath.bench --all --dry-run         rehearse everything on a CPU; writes nothing

In a checkout of the book, full forms go to kernels/chipmath/recorded/; quick forms, and everything outside a checkout,
to ./recorded-<date>. --out DIR takes either elsewhere, and is the only way to keep what other compilers than the pinned
ones made.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from chipmath.crosscompile import CompileError, CompilerMissing
from chipmath.experiments import EXPERIMENTS, AnyExperiment, Experiment, ExperimentError, Run
from chipmath.gpu import DriverError, gpu
from chipmath.processes import leave, run_group
from chipmath.recordings import KINDS, PACKAGE, RECORDED, SCHEMA, UNKNOWN_COMMIT, Recording, note_taken, recorded

# Version or its beginning; tools/environment.py pins Triton. LLVM and TVM: of the experiment llvm_23 alone.
PINNED = {"Triton": "3.9.0", "clang": "22", "nvcc": "13", "LLVM": "23.0.0git", "TVM": "0.1.0a4"}
EXPECTED_ERRORS = (ExperimentError, CompilerMissing, CompileError, DriverError)


@dataclass(frozen=True)
class Source:
    """Which code runs: the commit, and whether something other than recordings differs from it."""

    commit: str
    dirty: bool
    in_checkout: bool


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 if every experiment was recorded, rehearsed, or left out for want of a tool."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.list:
        _print_list()
        return 0
    experiments = _chosen(parser, options)
    if options.commit and not re.fullmatch(r"[0-9a-f]{40}", options.commit):
        parser.error(f"--commit {options.commit}: not 40 hexadecimal digits (git rev-parse HEAD)")
    measured = [experiment.name for experiment in experiments if experiment.kind == "measured"]
    if measured and not options.dry_run and gpu() is None:
        print(
            f"no GPU here that torch can use: {', '.join(measured)} cannot be measured; nothing was run",
            file=sys.stderr,
        )
        return 1
    experiments = [experiment for experiment in experiments if options.dry_run or _can_run(experiment, options)]
    try:
        source = find_source(options.commit)  # before the first recording is written
    except ValueError as error:
        parser.error(str(error))
    if not options.dry_run:
        try:
            _make_writable(_folder(options, source))  # before minutes of work
        except OSError as error:
            parser.error(f"cannot write to {_folder(options, source)}: {error.strerror}")
    do = _rehearse if options.dry_run else _record_apart if len(measured) > 1 else _record
    try:
        failed = [experiment.name for experiment in experiments if not do(experiment, options, source)]
    except KeyboardInterrupt:
        print("interrupted: the experiment under way left nothing behind", file=sys.stderr)
        return 130
    if failed:
        print(f"not {'rehearsed' if options.dry_run else 'recorded'}: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def take(experiment: Experiment, run: Run, source: Source, *, quick: bool) -> Recording:
    """A run as a recording, in memory; a page may call one that was measured on a GPU live."""
    recording = Recording(
        schema=SCHEMA,
        experiment=experiment.name,
        kind=experiment.kind,
        code=experiment.code(),
        commit=source.commit,
        dirty=source.dirty,
        taken=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        device=run.device,
        software=run.software,
        method={"form": "quick" if quick else "full", **run.method},
        columns=experiment.columns,
        rows=experiment.table(run.rows),
    )
    if recording.kind == "measured" and not _is_rehearsal(recording):
        note_taken(recording)
    return recording


def find_source(commit: str | None = None) -> Source:
    """What git says of this package; ``commit`` speaks for it where git cannot.

    Raises ValueError where git can, and says otherwise.
    """
    head = _git("rev-parse", "HEAD")
    # A package inside somebody else's repository (a virtual environment, say) is not a checkout of the book.
    if head is None or not (PACKAGE.parent.parent / ".git").exists():
        return Source(commit or UNKNOWN_COMMIT, False, False)
    if commit not in (None, head):
        raise ValueError(f"--commit {commit}: this checkout is at {head}, and --commit is for copies without .git")
    changes = _git("status", "--porcelain", "--", ":/", f":(exclude){RECORDED}")
    return Source(head, bool(changes), True)


def write(recording: Recording, folder: Path) -> Path:
    """Write one file in one step: what is seen under its name is always whole."""
    if _is_rehearsal(recording):
        raise ValueError("a rehearsal on a CPU is no measurement: not written")
    target = folder / recording.file_name
    partial = target.with_name(f".{target.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(recording.to_json())
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _is_rehearsal(recording: Recording) -> bool:
    return recording.device.get("arch") == "cpu"


def command(experiment: str) -> str:
    """What to type to record an experiment: in the checkout, or beside a notebook that carries the package."""
    folder = PACKAGE.parent.name
    path = "" if folder in ("site-packages", "dist-packages") else f"PYTHONPATH={folder} "
    return f"{path}python -m chipmath.bench {experiment}"


# ----------------------------------------------------------------------------------------------------- command line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m chipmath.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments to run; --list tells which there are")
    parser.add_argument("--list", action="store_true", help="show every experiment and its newest recording")
    parser.add_argument("--compiled", action="store_true", help="all compiled experiments; no GPU")
    parser.add_argument("--measured", action="store_true", help="all measured experiments; on a GPU")
    parser.add_argument("--all", action="store_true", help="all experiments: compiled, measured, computed")
    parser.add_argument("--skip", action="append", default=[], metavar="NAME", help="not this one; may be repeated")
    parser.add_argument("--quick", action="store_true", help="a form of seconds each; not for the book's recordings")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write")
    parser.add_argument("--commit", metavar="HASH", help="the commit that a copy without .git was made of")
    parser.add_argument("--dry-run", action="store_true", help="go through everything on a CPU and write nothing")
    return parser


def _chosen(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[AnyExperiment]:
    unknown = [name for name in (*options.names, *options.skip) if name not in EXPERIMENTS]
    if unknown:
        parser.error(f"no experiment {', '.join(unknown)}; there are {', '.join(EXPERIMENTS)}")
    kinds = {kind for kind in KINDS if options.all or getattr(options, kind, False)}
    chosen = [e for e in EXPERIMENTS.values() if e.name in options.names or e.kind in kinds]
    if not chosen:
        parser.error("name an experiment, or --compiled, --measured, --all or --list")
    kept = [experiment for experiment in chosen if experiment.name not in options.skip]
    if not kept:
        parser.error(f"--skip {' '.join(options.skip)} leaves nothing to do")
    return kept


def _can_run(experiment: AnyExperiment, options: argparse.Namespace) -> bool:
    """Whether its tool is here; one that was asked for by name may say so itself, as an error."""
    why = experiment.unavailable() if experiment.kind == "measured" and experiment.name not in options.names else ""
    if why:
        print(f"{experiment.name}: left out, {why}", file=sys.stderr)
    return not why


def _print_list() -> None:
    for experiment in EXPERIMENTS.values():
        takes = recorded(experiment.name)
        newest = f"recorded {takes[-1].taken[:10]}" if takes else "not recorded yet"
        print(f"{experiment.name:20} {experiment.kind:9} {newest:22} {experiment.question}")


def _record(experiment: AnyExperiment, options: argparse.Namespace, source: Source) -> bool:
    folder = _folder(options, source)
    try:
        run = experiment.run(options.quick, _Progress(experiment.name))
        _require_pinned(experiment, run, options.out)
    except EXPECTED_ERRORS as error:
        print(f"{experiment.name}: {error}", file=sys.stderr)
        return False
    recording = take(experiment, run, source, quick=options.quick)
    path = write(recording, folder)
    print(f"{experiment.name}: {len(recording.rows)} rows, {recording.provenance()}\n  -> {path}")
    if not source.in_checkout:
        print(_how_to_contribute(recording))
    return True


def _record_apart(experiment: AnyExperiment, options: argparse.Namespace, source: Source) -> bool:
    """In a process of its own: an error on the GPU ends every later call of its process, and would end the others.

    One that hangs is ended, with the compilers or profiler it has started, or the others would never have their turn.
    """
    command = [sys.executable, "-m", "chipmath.bench", experiment.name]
    command += ["--quick"] if options.quick else []
    command += ["--out", str(options.out)] if options.out else []
    command += ["--commit", options.commit] if options.commit else []
    sys.stdout.flush()
    began = time.monotonic()
    try:
        done = run_group(command, env=_environment(), timeout=experiment.longest_seconds)
    except subprocess.TimeoutExpired:
        limit = experiment.longest_seconds
        print(f"{experiment.name}: ended after {limit} s, more than it ever should take", file=sys.stderr)
        return False
    print(f"{experiment.name}: {time.monotonic() - began:.0f} s in all", flush=True)
    return done.returncode == 0


def _environment(**more: str) -> dict[str, str]:
    """This process's, for one that must import this very package before any other on the path."""
    path = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path)} | more


def _folder(options: argparse.Namespace, source: Source) -> Path:
    if options.out:
        return options.out
    return RECORDED if source.in_checkout and not options.quick else Path(f"recorded-{time.strftime('%Y-%m-%d')}")


def _make_writable(folder: Path) -> None:
    """Make the folder, and fail with OSError where no file can be made in it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def _require_pinned(experiment: Experiment, run: Run, out: Path | None) -> None:
    """The book's compiled recordings are of one set of compilers; what others made may be kept elsewhere."""
    if experiment.kind != "compiled" or out:
        return
    for name, version in run.software.items():
        pinned = PINNED.get(name)
        if pinned is None or not f"{version}.".startswith(f"{pinned}."):
            wanted = ", ".join(f"{compiler} {its}" for compiler, its in PINNED.items())
            raise ExperimentError(
                f"made by {name} {version}, and the recordings are of {wanted}: use --out DIR to keep it"
            )


def _how_to_contribute(recording: Recording) -> str:
    if recording.commit == UNKNOWN_COMMIT:
        return "  To contribute it, run again with --commit and the commit that your copy was made of."
    return (
        "  To contribute it, open a pull request that adds the file to kernels/chipmath/recorded/ "
        f"(or an issue with the file), and confirm that an unchanged copy of {recording.commit[:7]} ran."
    )


def _rehearse(experiment: AnyExperiment, options: argparse.Namespace, source: Source) -> bool:
    if experiment.kind == "measured" and os.environ.get("TRITON_INTERPRET") != "1":
        return _rehearse_apart(experiment)
    progress = _Progress(experiment.name)
    try:
        run = experiment.rehearsal(progress) if experiment.kind == "measured" else experiment.run(True, progress)
    except EXPECTED_ERRORS as error:
        print(f"{experiment.name}: {error}", file=sys.stderr)
        return False
    recording = take(experiment, run, source, quick=True)
    if Recording(**json.loads(recording.to_json())) != recording:
        raise AssertionError(f"{experiment.name}: a recording that its own file does not give back")
    print(f"{experiment.name}: rehearsed {len(recording.rows)} rows; not written, because --dry-run measures nothing")
    return True


def _rehearse_apart(experiment: Experiment) -> bool:
    """Triton decides when it is imported whether kernels are interpreted: so in a process of their own."""
    rehearsal = [sys.executable, "-m", "chipmath.bench", "--dry-run", experiment.name]
    sys.stdout.flush()
    return subprocess.run(rehearsal, env=_environment(TRITON_INTERPRET="1"), check=False).returncode == 0


class _Progress:
    """Progress: the first and last step, and at most a line a second between; in a log few, or errors would drown."""

    def __init__(self, name: str):
        self.name = name
        self.shown = 0.0
        self.pause_seconds = 1 if sys.stderr.isatty() else 15

    def __call__(self, done: int, total: int, text: str) -> None:
        if done in (0, total) or time.monotonic() - self.shown > self.pause_seconds:
            print(f"  {self.name}: {done}/{total} {text}", file=sys.stderr, flush=True)
            self.shown = time.monotonic()


def _git(*arguments: str) -> str | None:
    """What git prints about the package's repository; None without git or outside a repository."""
    try:
        done = subprocess.run(["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


if __name__ == "__main__":
    leave(main)
