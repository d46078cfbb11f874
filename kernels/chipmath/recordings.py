"""Recordings: results of a compiler, a GPU or a long computation that pages show without one, with their provenance.

A recording is one JSON file in ``recorded/``, written by `chipmath.bench` and by nothing else. It is read as a frozen
`Recording` whose fields are checked one by one: a result whose origin is incomplete is not a result.
"""

import hashlib
import json
import math
import re
from dataclasses import dataclass, fields
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent
RECORDED = PACKAGE / "recorded"
SCHEMA = 1
KINDS = ("compiled", "measured", "computed")
UNKNOWN_COMMIT = "unknown"  # outside a checkout; such a recording is not committed (tests/test_recordings.py)


@dataclass(frozen=True)
class Recording:
    """One run of one experiment.

    schema      version of this form
    experiment  its name in chipmath.experiments
    kind        "compiled", "measured", or "computed" for arithmetic that takes too long for a page
    code        SHA-256 of the experiment's own source files, as `code_digest` makes it
    commit      40 hexadecimal digits, or "unknown" outside a checkout
    dirty       whether the checkout had other changes than recordings
    taken       UTC, "2026-11-20T14:02:11Z"
    device      measured: name, arch, units, memory_bytes, clocks before and after; compiled: the chips compiled for;
                computed: name of the CPU and threads
    software    versions: of the compilers (compiled), of driver, runtime, torch, triton (measured)
    method      how: form ("quick" or "full") and whatever else the experiment states
    columns     names with their unit: "shared_bytes"
    rows        one list a row, in the order of ``columns``; a cell is a string, a finite number or None

    Raises ValueError naming the field that is wrong.
    """

    schema: int
    experiment: str
    kind: str
    code: str
    commit: str
    dirty: bool
    taken: str
    device: dict[str, Any]
    software: dict[str, str | None]
    method: dict[str, Any]
    columns: list[str]
    rows: list[list[Any]]

    def __post_init__(self):
        """Check the form of every field; tests hold its numbers against git's history and, compiled, the compiler."""
        for name, (is_right, expected) in _FIELDS.items():
            value = getattr(self, name)
            if not is_right(value):
                raise ValueError(f"field {name!r} is {_short(value)}, not {expected}")
        for name in _DEVICE_FIELDS[self.kind]:
            if name not in self.device:
                raise ValueError(f"field 'device' of a {self.kind} recording lacks {name!r}")
        for number, row in enumerate(self.rows):
            if not isinstance(row, list) or len(row) != len(self.columns):
                raise ValueError(f"field 'rows': row {number} is not a list of {len(self.columns)} cells: {row!r}")
            for column, cell in zip(self.columns, row):
                if not _is_cell(cell):
                    raise ValueError(f"field 'rows': row {number}, {column}: {cell!r} is no string, number or null")

    @property
    def file_name(self) -> str:
        """What the recording is called in ``recorded/``: measured ones add up, the others are replaced.

        A quick form has a name of its own, so that it never replaces a full one.
        """
        name = self.experiment + ("-quick" if self.method["form"] == "quick" else "")
        if self.kind != "measured":
            return f"{self.kind}-{name}.json"
        device = re.sub(r"[^a-z0-9]+", "-", self.device["name"].lower()).strip("-")
        moment = self.taken.replace(":", "")[:15]  # 2026-11-20T1402
        return f"{moment}-{device}-{name}.json"

    @property
    def older_code(self) -> bool:
        """Whether the experiment's source files have changed since, or the experiment is gone."""
        from chipmath.experiments import EXPERIMENTS  # above this module: an experiment declares its own sources

        experiment = EXPERIMENTS.get(self.experiment)
        return experiment is None or experiment.code() != self.code

    def select(self, **column_values) -> list[dict[str, Any]]:
        """The rows with these cells, as dictionaries; none is an empty list."""
        wanted = {self._index(name): value for name, value in column_values.items()}
        rows = [row for row in self.rows if all(row[i] == value for i, value in wanted.items())]
        return [dict(zip(self.columns, row)) for row in rows]

    def find(self, **column_values) -> dict[str, Any]:
        """The one row with these cells; LookupError, naming the query, where none or several have them."""
        rows = self.select(**column_values)
        if len(rows) != 1:
            query = ", ".join(f"{name}={value!r}" for name, value in column_values.items()) or "any cells"
            raise LookupError(f"{self.experiment}: {len(rows)} of {len(self.rows)} rows have {query}; wanted one")
        return rows[0]

    def cell(self, column: str, **column_values) -> Any:
        """One cell of the one row with these cells."""
        self._index(column)
        return self.find(**column_values)[column]

    def provenance(self) -> str:
        """Where the numbers are from, in one line."""
        if self.kind == "compiled":
            what = f"{_versions(self.software)} for {', '.join(self.device['targets'])}; nothing ran"
        elif self.kind == "computed":
            threads = self.device["threads"]
            what = f"{self.device['name']}, {threads} thread{'s' * (threads != 1)}, {_versions(self.software)}"
        else:
            what = f"{self.device['name']} ({self.device['arch']}), {_versions(self.software)}"
        changes = " with uncommitted changes" if self.dirty else ""
        return f"{what}; commit {self.commit[:7]}{changes}, {self.taken[:10]}"

    def to_json(self) -> str:
        """The file's text: one line a row, so that a changed row is a changed line."""
        head = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "rows"}
        lines = [f'  "{name}": {json.dumps(value, ensure_ascii=False)},' for name, value in head.items()]
        rows = ",\n".join(f"    {json.dumps(row, ensure_ascii=False, allow_nan=False)}" for row in self.rows)
        return "{\n" + "\n".join(lines) + '\n  "rows": [\n' + rows + "\n  ]\n}\n"

    def _index(self, name: str) -> int:
        if name not in self.columns:
            raise LookupError(f"{self.experiment} has no column {name!r}, only {', '.join(self.columns)}")
        return self.columns.index(name)


def load(path: str | Path) -> Recording:
    """Read one file; ValueError naming file and field where it is not exactly a recording."""
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name}: not JSON: {error}") from None
    expected = [f.name for f in fields(Recording)]
    if not isinstance(data, dict) or sorted(data) != sorted(expected):
        found = set(data) if isinstance(data, dict) else set()
        lacks, extra = sorted(set(expected) - found), sorted(found - set(expected))
        raise ValueError(f"{path.name}: not a recording's fields: lacks {lacks or 'none'}, has {extra or 'none'} more")
    try:
        return Recording(**data)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None


def recorded(experiment: str | None = None) -> list[Recording]:
    """Every recording in ``recorded/``, or every one of one experiment; the newest last."""
    found = [load(path) for path in sorted(RECORDED.glob("*.json"))]
    return sorted((r for r in found if experiment in (None, r.experiment)), key=lambda r: r.taken)


def newest(experiment: str) -> Recording:
    """The newest recording of an experiment; LookupError where it was never recorded."""
    found = recorded(experiment)
    if not found:
        known = sorted({recording.experiment for recording in recorded()})
        raise LookupError(f"no recording of {experiment!r}; there are some of {', '.join(known) or 'nothing'}")
    return found[-1]


_taken_here: set[str] = set()  # as JSON: a recording whose rows were changed since is another one


def note_taken(recording: Recording) -> None:
    """Remember a measurement of this process; `chipmath.bench` calls it and nothing else does."""
    _taken_here.add(recording.to_json())


def is_taken_here(recording: Recording) -> bool:
    """Whether `chipmath.bench` took exactly this measurement in this process: only then is it live."""
    return recording.to_json() in _taken_here


def is_recorded(recording: Recording) -> bool:
    """Whether ``recorded/`` holds exactly this recording: one made up in a page is not there."""
    path = RECORDED / recording.file_name
    return path.exists() and load(path) == recording


def code_digest(sources: tuple[str, ...]) -> str:
    """SHA-256 of source files of the package, names included; their order does not matter."""
    digest = hashlib.sha256()
    for name in sorted(sources):
        digest.update(name.encode() + b"\0" + (PACKAGE / name).read_bytes() + b"\0")
    return digest.hexdigest()


def moment(taken: str) -> datetime:
    """The field ``taken`` as a time; ValueError where it is none."""
    return datetime.strptime(taken, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)


def _is_taken(value: Any) -> bool:
    if not _matches(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")(value):
        return False
    try:
        return moment(value) < datetime.now(timezone.utc) + timedelta(days=1)  # a clock may be wrong, not by a day
    except ValueError:  # the 30th of February
        return False


def _matches(pattern: str):
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _is_columns(value: Any) -> bool:
    if not isinstance(value, list) or not value:
        return False
    return all(map(_matches(r"\w+"), value)) and len(set(value)) == len(value)


def _is_versions(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(v is None or isinstance(v, str) for v in value.values())


def _is_method(value: Any) -> bool:
    return isinstance(value, dict) and value.get("form") in ("quick", "full")


def _is_cell(value: Any) -> bool:
    return value is None or isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value))


_FIELDS = {
    "schema": (lambda value: value == SCHEMA and type(value) is int, f"{SCHEMA}"),
    "experiment": (_matches(r"[a-z]\w*"), "a name"),
    "kind": (lambda value: value in KINDS, f"one of {', '.join(KINDS)}"),
    "code": (_matches(r"[0-9a-f]{64}"), "a SHA-256 of 64 hexadecimal digits"),
    "commit": (_matches(rf"[0-9a-f]{{40}}|{UNKNOWN_COMMIT}"), f"40 hexadecimal digits or {UNKNOWN_COMMIT!r}"),
    "dirty": (lambda value: isinstance(value, bool), "true or false"),
    "taken": (_is_taken, "a UTC time like 2026-11-20T14:02:11Z, and not in the future"),
    "device": (lambda value: isinstance(value, dict), "an object"),
    "software": (_is_versions, "an object of versions"),
    "method": (_is_method, "an object whose form is quick or full"),
    "columns": (_is_columns, "a list of different names"),
    "rows": (lambda value: isinstance(value, list) and bool(value), "a list of rows"),
}
_DEVICE_FIELDS = {
    "compiled": ("targets",),
    "measured": ("name", "arch", "clock_hz_before", "clock_hz_after"),
    "computed": ("name", "threads"),
}


def _versions(software: dict[str, str | None]) -> str:
    return ", ".join(f"{name} {version}" for name, version in software.items() if version is not None)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:56]}…"
