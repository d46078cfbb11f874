"""What an experiment is: a question, its own source files, named columns, and a way to run it.

Modules of experiments import no compiler and no torch at their top, so that pages can ask what an experiment would
predict, or whether its code has changed, on any machine.
"""

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from chipmath.crosscompile import CompileError
from chipmath.experiments.here import (
    STAND_IN,
    clock_hz,
    cpu_record,
    cpu_software,
    device_record,
    software_record,
)
from chipmath.gpu import Gpu, gpu
from chipmath.recordings import Recording, code_digest

Progress = Callable[[int, int, str], None]  # how many are done, of how many, and what is next
Row = dict[str, Any]


class ExperimentError(RuntimeError):
    """An experiment that cannot run here, or whose result failed its own check; nothing is recorded then."""


@dataclass(frozen=True)
class Run:
    """What an experiment hands to the recorder."""

    device: dict[str, Any]
    software: dict[str, str | None]
    method: dict[str, Any]
    rows: list[Row]


@dataclass(frozen=True)
class Experiment:
    """A question with a reproducible answer; use CompiledExperiment, ComputedExperiment or MeasuredExperiment.

    question  what it finds out, in one line
    sources   files of the package that decide the result; their digest tells a recording of older code
    keys      columns that identify a row, in order, with what they mean and their unit
    values    the other columns
    """

    name: str
    question: str
    sources: tuple[str, ...]
    keys: dict[str, str]
    values: dict[str, str]
    kind: ClassVar[str] = ""

    @property
    def columns(self) -> list[str]:
        """Names of all columns, keys first."""
        return [*self.keys, *self.values]

    def code(self) -> str:
        """Digest of the source files as they are now."""
        return code_digest(self.sources)

    def run(self, quick: bool, progress: Progress) -> Run:
        """Do the experiment: all of it, or a form that takes seconds."""
        raise NotImplementedError

    def table(self, rows: list[Row]) -> list[list[Any]]:
        """The rows as lists in the order of ``columns``, sorted by their keys."""
        for row in rows:
            if set(row) != set(self.columns):
                raise ValueError(f"{self.name}: a row has {sorted(row)}, the columns are {sorted(self.columns)}")
        return sorted(([row[name] for name in self.columns] for row in rows), key=lambda row: row[: len(self.keys)])


@dataclass(frozen=True)
class CompiledExperiment(Experiment):
    """What real compilers make of a kernel for named chips; nothing runs.

    cases         the keys of every row
    quick_cases   a few of them that compile in seconds: what a page and the quick form do
    compile_case  keys of a row -> its other cells; one of them is ``compiler``
    """

    cases: tuple[Row, ...]
    quick_cases: tuple[Row, ...]
    compile_case: Callable[..., Row]
    kind: ClassVar[Literal["compiled"]] = "compiled"
    longest_seconds: ClassVar[None] = None  # however long it takes; only measured ones may hang

    def run(self, quick: bool, progress: Progress) -> Run:
        """Compile every case, or the quick ones."""
        cases, rows = self.quick_cases if quick else self.cases, []
        for done, case in enumerate(cases):
            progress(done, len(cases), describe(case))
            rows.append(case | self.compile_case(**case))
        progress(len(cases), len(cases), "done")
        targets = sorted({row["arch"] for row in rows})
        return Run({"targets": targets}, compilers(row["compiler"] for row in rows), {}, rows)

    def compare(self, recording: Recording, case: Row) -> tuple[str, str]:
        """Compile one case again: its compiler here (an empty string: none did), and "same" or "differs: …" in words.

        Raises CompilerMissing where the compiler of this case is not here.
        """
        if set(recording.columns) != set(self.columns) or not recording.select(**case):
            return "", "not compared: the recording is of other cases or columns than the experiment has now"
        then = recording.find(**case)
        try:
            now = self.compile_case(**case)
        except CompileError as error:
            return "", f"differs: {error}"
        compiler = now.pop("compiler")
        changes = [f"{name} {then[name]} → {value}" for name, value in now.items() if value != then[name]]
        return compiler, f"differs: {', '.join(changes)}" if changes else "same"


@dataclass(frozen=True)
class ComputedExperiment(Experiment):
    """Arithmetic on a CPU that takes minutes: seeded, and the same everywhere but for the order of float sums.

    compute  quick, progress -> method and rows
    """

    compute: Callable[[bool, Progress], tuple[dict[str, Any], list[Row]]]
    kind: ClassVar[Literal["computed"]] = "computed"
    longest_seconds: ClassVar[None] = None

    def run(self, quick: bool, progress: Progress) -> Run:
        """Compute all of it, or a form that takes seconds."""
        _require_torch(self.name)
        method, rows = self.compute(quick, progress)
        return Run(cpu_record(), cpu_software(), method, rows)


@dataclass(frozen=True)
class Shown:
    """How a page shows a column: header with unit, format specification, and what a cell is multiplied by."""

    header: str
    spec: str = ""
    scale: float | None = None

    def cell(self, value: Any) -> Any:
        """The cell in the header's unit."""
        return value if value is None or self.scale is None else value * self.scale


@dataclass(frozen=True)
class MeasuredExperiment(Experiment):
    """What is timed or counted on a GPU.

    measure     on torch's current GPU -> method and rows; raises ExperimentError where it cannot or must not be trusted
    rehearse    the same code on a CPU with stand-ins for what only a GPU can do; its rows are no measurement
    predict     a few rows that the model expects; each names its ``arch`` or ``device``
    prediction  what kind of prediction that is, in a few words
    predicted_from  the compiled experiments whose recordings the prediction reads
    longest_seconds  of a full run, compilers and torch's start included: one that takes longer has hung
    live_seconds     of a quick run in a page, where readers wait for it: one that is not done by then is given up
    unavailable  why it cannot run here, for want of a tool that most machines lack; an empty string: it can
    shown       the columns, of measured and predicted rows, that a page shows
    """

    measure: Callable[[Gpu, bool, Progress], tuple[dict[str, Any], list[Row]]]
    rehearse: Callable[[Progress], tuple[dict[str, Any], list[Row]]]
    predict: Callable[[], list[Row]]
    prediction: str
    shown: dict[str, Shown]
    predicted_from: tuple[str, ...] = ()
    longest_seconds: int = 180
    live_seconds: int = 10
    unavailable: Callable[[], str] = str
    kind: ClassVar[Literal["measured"]] = "measured"

    def run(self, quick: bool, progress: Progress) -> Run:
        """Measure on the GPU that is here."""
        here = gpu()
        if here is None:
            raise ExperimentError(
                f"{self.name} is measured on a GPU, and torch sees none here (--dry-run rehearses it)"
            )
        import torch

        before = clock_hz(here)
        try:
            method, rows = self.measure(here, quick, progress)
        except torch.OutOfMemoryError as error:
            first_line = str(error).partition("\n")[0]
            raise ExperimentError(f"{self.name} needs more memory than this GPU has free: {first_line}") from error
        return Run(device_record(here, before, clock_hz(here)), software_record(here), method, rows)

    def rehearsal(self, progress: Progress) -> Run:
        """The same path without a GPU."""
        _require_torch(self.name)
        method, rows = self.rehearse(progress)
        return Run(device_record(STAND_IN, None, None), software_record(STAND_IN), method, rows)


AnyExperiment = CompiledExperiment | ComputedExperiment | MeasuredExperiment


def _require_torch(name: str) -> None:
    if importlib.util.find_spec("torch") is None:
        raise ExperimentError(f"{name} needs torch, which is not installed: https://pytorch.org/get-started")


def describe(case: Row) -> str:
    """A case in words, for progress and differences: "gfx950, tile_m 128"."""
    words = {
        name: value if isinstance(value, str) else f"{name.replace('_', ' ')} {value}" for name, value in case.items()
    }
    return ", ".join(words.values())


def compilers(texts: Iterable[str]) -> dict[str, str | None]:
    """Name and version of each compiler that `Binary.compiler` strings tell of; each differs by its first version."""
    found: dict[str, str | None] = {}
    for text in sorted(set(texts)):
        words = text.split(",")[0].split()
        name = next(known for known in ("TVM", "LLVM", "Triton", "clang", "nvcc", "NVRTC") if known in words)
        found[name] = next(word for word in words[words.index(name) + 1 :] if word[0].isdigit())
    return found
