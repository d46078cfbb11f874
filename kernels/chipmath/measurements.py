"""Compiled and measured results for pages: recorded, compiled again or measured live, and never silently one of them.

    compiled("matrix_chains")        # the recording, and a few rows compiled again on this machine
    measure("residency")             # live on this GPU beside the recording; the recording; or a labelled prediction

Both display themselves as tables with badges. Numbers for prose come from the recordings::

    chains = compiled("matrix_chains")
    glue("registers", chains.value("registers", "d", instruction="mfma 16x16x128", chains=8), display=False)
"""

import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from chipmath import bench
from chipmath.crosscompile import CompilerMissing
from chipmath.evidence import Compiled, Computed, Evidence, Measured, Table
from chipmath.experiments import (
    EXPERIMENTS,
    CompiledExperiment,
    ExperimentError,
    MeasuredExperiment,
    Progress,
    Row,
    compilers,
    describe,
)
from chipmath.gpu import gpu
from chipmath.recordings import Recording, newest, recorded


@dataclass(frozen=True)
class CompiledResult:
    """The committed recording of a compiled experiment; displays what compiling a few rows again gives here."""

    experiment: CompiledExperiment
    recording: Recording

    def value(self, column: str, spec: str = "", unit: str = "", **keys) -> Compiled:
        """One number or text of the recording, for prose; ``keys`` pick its row."""
        return Compiled(self.recording.cell(column, **keys), spec, unit, recording=self.recording)

    def table(self, columns: dict[str, str], specs: list[str] | None = None, caption: str = "", **keys) -> Compiled:
        """Rows with these cells as a table; ``columns`` maps names to the headers shown."""
        rows = self.recording.select(**keys)
        if not rows:
            raise LookupError(f"{self.experiment.name} has no row with {describe(keys)}")
        if unknown := columns.keys() - rows[0].keys():
            raise LookupError(f"{self.experiment.name} has no column {', '.join(sorted(unknown))}")
        cells = [[row[name] for name in columns] for row in rows]
        return Compiled(Table(list(columns.values()), cells, specs, caption), recording=self.recording)

    @cached_property
    def here(self) -> list[list[str]]:
        """Each case that compiles in seconds, and what compiling it again gives: "this machine, Triton 3.9.0: same"."""
        return [[describe(case), self._compare(case)] for case in self.experiment.quick_cases]

    def _compare(self, case: Row) -> str:
        try:
            compiler, verdict = self.experiment.compare(self.recording, case)
        except CompilerMissing as error:
            return f"not compiled again: {str(error).split(':')[0]}"
        if not compiler:
            return verdict
        ((name, version),) = compilers([compiler]).items()
        return f"this machine, {name} {version}: {verdict}"

    def _repr_mimebundle_(self, include=None, exclude=None):
        caption = f"{self.experiment.question} A few of the {len(self.recording.rows)} recorded rows, compiled again:"
        table = Table(["row", "beside the recording"], self.here, caption=caption)
        return Compiled(table, recording=self.recording)._repr_mimebundle_(include, exclude)


@dataclass(frozen=True)
class MeasuredResult:
    """What is known of a measured experiment: a live run, recordings, or a prediction that says so.

    live      this session's run of the quick form, if there was one
    recorded  the newest recording of every device
    why       why there is no live run
    """

    experiment: MeasuredExperiment
    live: Recording | None
    recorded: list[Recording] = field(default_factory=list)
    why: str = ""

    def display(self) -> Evidence:
        """The table that the page shows."""
        return self._runs() if self.live or self.recorded else self._prediction()

    def _repr_mimebundle_(self, include=None, exclude=None):
        return self.display()._repr_mimebundle_(include, exclude)

    @property
    def _command(self) -> str:
        return bench.command(self.experiment.name)

    def _runs(self) -> Evidence:
        runs = [(f"recorded {recording.taken[:10]}", recording) for recording in self.recorded]
        runs += [("live", self.live)] if self.live else []
        rows = [(row, [f"{run}, {recording.device['name']}"]) for run, recording in runs for row in recording.select()]
        rows.sort(key=lambda pair: [pair[0][key] for key in self.experiment.keys])
        result: Any = self._table([row for row, _ in rows], [("run", [run for _, (run,) in rows])], self._caption())
        for _, recording in runs:
            result = Measured(result, recording=recording, live=recording is self.live)
        return result

    def _caption(self) -> str:
        if self.live and self.recorded:
            return f"{self.experiment.question} Live on this GPU (quick form) beside what was recorded."
        if self.live:
            return f"{self.experiment.question} Live on this GPU (quick form); to record it: {self._command}"
        return f"{self.experiment.question} As recorded: {self.why}."

    def _prediction(self) -> Evidence:
        caption = (
            f"Prediction, not a measurement: {self.experiment.prediction}. "
            f"{self.experiment.name} has not been measured yet ({self.why}). On your GPU: {self._command}"
        )
        result: Evidence = Computed(self._table(self.experiment.predict(), [], caption))
        for name in self.experiment.predicted_from:
            result = Compiled(result, recording=newest(name))
        return result

    def _table(self, rows: list[Row], extra: list[tuple[str, list]], caption: str) -> Table:
        shown = {name: how for name, how in self.experiment.shown.items() if name in rows[0]}
        headers = [how.header for how in shown.values()] + [header for header, _ in extra]
        cells = [[how.cell(row[name]) for name, how in shown.items()] for row in rows]
        for _, values in extra:
            cells = [[*line, value] for line, value in zip(cells, values)]
        return Table(headers, cells, [how.spec for how in shown.values()] + [""] * len(extra), caption)


def compiled(name: str) -> CompiledResult:
    """The committed recording of a compiled experiment."""
    return CompiledResult(_experiment(name, "compiled"), newest(name))


def measure(name: str) -> MeasuredResult:
    """Run the quick form where a GPU is here, and set it beside what was recorded."""
    experiment = _experiment(name, "measured")
    newest_on = {recording.device["name"]: recording for recording in recorded(name)}  # oldest first: the last stays
    live, why = _live(experiment)
    return MeasuredResult(experiment, live, sorted(newest_on.values(), key=lambda recording: recording.taken), why)


def _experiment(name: str, kind: str):
    known = [experiment.name for experiment in EXPERIMENTS.values() if experiment.kind == kind]
    if name not in known:
        raise ValueError(f"no {kind} experiment {name!r}; there are {', '.join(known)}")
    return EXPERIMENTS[name]


def _live(experiment: MeasuredExperiment) -> tuple[Recording | None, str]:
    """A run of the quick form, or why there is none."""
    here = gpu()
    if here is None:
        return None, "no GPU here that torch can use"
    limit = experiment.live_seconds
    print(f"{experiment.name}: measuring on {here.name}, quick form, {limit} s at most", flush=True)
    try:
        run = experiment.run(True, _deadline(limit))
    except bench.EXPECTED_ERRORS as error:
        return None, f"not measured on {here.name}: {error}"
    return bench.take(experiment, run, bench.find_source(), quick=True), ""


def _deadline(seconds: int) -> Progress:
    """A progress that ends the run where a page would wait too long for it."""
    end = time.monotonic() + seconds

    def progress(done: int, total: int, text: str) -> None:
        if done < total and time.monotonic() > end:
            raise ExperimentError(
                f"more than {seconds} s before {text}; what Triton has compiled is kept for a second try"
            )

    return progress
