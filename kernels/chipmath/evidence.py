"""Results that carry their evidence: computed, compiled, measured or cited.

A page never writes a badge. It wraps a result in the kind of evidence that stands behind it and shows or glues the
wrapper; the badge is part of how the wrapper displays itself::

    Computed(33 / 32, ".5f")                       # 1.03125, badge "computed"
    Cited(2.5, ".1f", unit="PFLOP/s", source="amd2025mi355x")
    Compiled(106, "d", unit="registers", recording=recordings.newest("matrix_chains"))
    Computed(Table(["block", "SQNR in dB"], rows))   # a table with its badge below
    Cited(Computed(figure), source="pandey2026occupancy")   # two kinds in one figure: two badges

In prose the wrapper is glued and quoted with the role ``{evidence}`key```, which refuses anything else.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass, field
from html import escape
from typing import Any, ClassVar

from chipmath.recordings import Recording, is_recorded, is_taken_here

# Symbol shown in running text, where a whole word after every number would drown the sentence.
SYMBOLS = {"computed": "=", "compiled": "‹›", "measured": "±", "cited": "”"}
NO_BREAK_SPACE = "\u00a0"
MINUS = "\u2212"  # a hyphen is too short beside digits, and a line may break after it
METADATA_KEY = "chipmath-evidence"  # marks a display as a result's; the book's build refuses a badge without it
OLDER_CODE = "recorded, older code"  # the experiment's source files have changed since


@dataclass(frozen=True, repr=False)
class Table:
    """Rows under named columns, formatted one column at a time.

    columns  header texts, each with its unit where it has one
    rows     sequences as long as ``columns``; a cell is a number, a string, None (shown as an en dash) or an Evidence
    specs    format specifications, one a column ("" for text); a cell that is a string ignores it
    caption  what the table says, shown above it

    Raises ValueError where a row or ``specs`` has another length than ``columns``, or a number is not finite.
    """

    columns: list[str]
    rows: list[list[Any]]
    specs: list[str] | None = None
    caption: str = ""

    def __post_init__(self):
        """Check the shape once, so that a wrong table fails where it is made."""
        for row in [*self.rows, self.specs or self.columns]:
            if len(row) != len(self.columns):
                raise ValueError(f"{len(row)} cells {list(row)!r} for {len(self.columns)} columns {self.columns!r}")
        # Formatted here too, as IPython prints an error of the display into the page and goes on.
        for row in self.rows:
            for cell, spec in zip(row, self._specs()):
                _plain_cell(cell, spec)

    def __repr__(self) -> str:
        """Return the table as text with aligned columns, for terminals and notebooks without HTML."""
        specs, numeric = self._specs(), self._numeric()
        lines = [list(self.columns), *([_plain_cell(v, s) for v, s in zip(row, specs)] for row in self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        lines.insert(1, ["-" * width for width in widths])
        adjust = [str.rjust if is_number else str.ljust for is_number in numeric]
        text = ["  ".join(f(c, w) for f, c, w in zip(adjust, line, widths)).rstrip() for line in lines]
        return "\n".join([self.caption, *text] if self.caption else text)

    def _specs(self) -> list[str]:
        return self.specs or [""] * len(self.columns)

    def _numeric(self) -> list[bool]:
        return [all(not isinstance(row[i], str) for row in self.rows) for i in range(len(self.columns))]

    def _is_wordy(self, column: int) -> bool:
        """Return whether a column holds a text of several words, which must not become one word a line."""
        cells = [row[column] for row in self.rows if isinstance(row[column], str)]
        return any(len(cell) > 12 and " " in cell for cell in cells)

    def _repr_html_(self) -> str:
        specs, numeric = self._specs(), self._numeric()
        align = [' class="number"' if is_number else "" for is_number in numeric]
        wordy = [not is_number and self._is_wordy(i) for i, is_number in enumerate(numeric)]
        cells = [' class="words"' if words else a for words, a in zip(wordy, align)]
        head = "".join(f'<th scope="col"{a}>{escape(c)}</th>' for c, a in zip(self.columns, align))
        # What a row is about is read out with each of its cells; a first column of numbers is no name.
        tags = [("<td", "</td>")] * len(cells)
        if not all(numeric[:1]):
            tags[0] = ('<th scope="row"', "</th>")
        body = "".join(
            "<tr>"
            + "".join(f"{start}{a}>{_cell(v, s)}{end}" for v, s, a, (start, end) in zip(row, specs, cells, tags))
            + "</tr>"
            for row in self.rows
        )
        caption = f"<caption>{escape(self.caption)}</caption>" if self.caption else ""
        # A table wider than a phone scrolls inside its own box; the box must then be reachable by keyboard.
        label = escape(self.caption or "result table")
        return (
            f'<div class="result-table" tabindex="0" role="group" aria-label="{label}">'
            f'<table class="result">{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )


@dataclass(frozen=True)
class Evidence:
    """A result and what stands behind it; use one of the four subclasses.

    content  a number, a string, or something that displays itself (a Table, a figure, another Evidence)
    spec     format specification of a number, as in ``format(content, spec)``
    unit     appended with a space that does not break; "%" needs none, as the specification ``.1%`` writes it
    """

    content: Any
    spec: str = ""
    unit: str = ""
    kind: ClassVar[str] = ""

    def __post_init__(self):
        """Refuse a number that is not finite: in a sentence it is a mistake, never a finding."""
        if not self.kind:
            raise TypeError("Evidence has four kinds: use Computed, Compiled, Measured or Cited")
        _finite(self.content)
        if hasattr(self.content, "__float__"):
            _text(self.content, self.spec)  # a wrong specification fails here, not in the display

    def detail(self) -> str:
        """Say what stands behind the result, in one line for the tooltip."""
        raise NotImplementedError

    def __str__(self) -> str:
        """Return the result as text, without badge."""
        text = _text(self.content, self.spec)
        return f"{text}{NO_BREAK_SPACE}{self.unit}" if self.unit else text

    def badge(self, *, word: bool) -> str:
        """Return the badge as HTML: the kind's word under tables and figures, its symbol in running text."""
        return (
            f'<span class="evidence evidence-{self.kind}" tabindex="0" role="note"{self._attributes()} '
            f'aria-label="{escape(self.kind + ": " + self.detail())}" data-tip="{escape(self.detail())}">'
            f"{self._word() if word else SYMBOLS[self.kind]}</span>"
        )

    def badges(self, *, word: bool) -> str:
        """Return the badges of this result and of every result nested in it, outermost last."""
        inner = self.content.badges(word=word) if isinstance(self.content, Evidence) else ""
        return inner + self.badge(word=word)

    def inline_html(self) -> str:
        """Return value and symbol for running text; the two stay on one line."""
        return f'<span class="evidence-value">{escape(str(self))}{self.badges(word=False)}</span>'

    def _word(self) -> str:
        return self.kind

    def _attributes(self) -> str:
        return ""

    def _innermost(self) -> Any:
        return self.content._innermost() if isinstance(self.content, Evidence) else self.content

    def _repr_mimebundle_(self, include=None, exclude=None) -> tuple[dict, dict]:
        shown = self._innermost()
        data: dict[str, Any] = {"text/plain": str(self)}
        if hasattr(shown, "_repr_mimebundle_"):
            data |= shown._repr_mimebundle_(include, exclude)
        elif hasattr(shown, "_repr_html_"):
            data["text/html"] = shown._repr_html_()
        if "text/html" in data:
            data["text/html"] += f'<div class="evidence-line">{self.badges(word=True)}</div>'
        else:
            data["text/html"] = self.inline_html()
        written = "\0".join((METADATA_KEY, data["text/html"], data["text/plain"]))
        return data, {METADATA_KEY: {"kind": self.kind, "sha256": hashlib.sha256(written.encode()).hexdigest()}}


@dataclass(frozen=True)
class Computed(Evidence):
    """Arithmetic run when the page was built, by the code beside it; or, with a ``recording``, once and for longer."""

    recording: Recording | None = None
    kind: ClassVar[str] = "computed"

    def __post_init__(self):
        """Refuse a recording of another kind, or one that is not committed."""
        super().__post_init__()
        if self.recording is not None:
            _check_recording(self, live=False)

    def detail(self) -> str:
        """Say that the page's own code produced it, or name CPU, software, commit and date of the recording."""
        return _provenance(self.recording) if self.recording else "arithmetic run when this page was built"

    def _word(self) -> str:
        if self.recording is None:
            return self.kind
        return f"computed, {OLDER_CODE if self.recording.older_code else 'recorded'}"

    def _attributes(self) -> str:
        return f' data-recording="{escape(self.recording.file_name)}"' if self.recording else ""


@dataclass(frozen=True)
class Compiled(Evidence):
    """A compiler's output for a named chip, as the committed ``recording`` has it."""

    recording: Recording = field(kw_only=True)
    kind: ClassVar[str] = "compiled"

    def __post_init__(self):
        """Refuse a result whose recording is missing, of another kind, or not a committed one."""
        super().__post_init__()
        _check_recording(self, live=False)

    def detail(self) -> str:
        """Name compilers, chips, commit and date."""
        return _provenance(self.recording)

    def _word(self) -> str:
        return f"compiled, {OLDER_CODE}" if self.recording.older_code else self.kind

    def _attributes(self) -> str:
        return f' data-recording="{escape(self.recording.file_name)}"'


@dataclass(frozen=True)
class Measured(Evidence):
    """Timed or counted on hardware: as a committed ``recording`` has it, or ``live``, by this very process."""

    recording: Recording = field(kw_only=True)
    live: bool = False
    kind: ClassVar[str] = "measured"

    def __post_init__(self):
        """Refuse a result whose recording is missing, of another kind, or neither committed nor taken here."""
        super().__post_init__()
        _check_recording(self, live=self.live)

    def detail(self) -> str:
        """Name device, driver, software, commit and date."""
        return f"live: {self.recording.provenance()}" if self.live else _provenance(self.recording)

    def _word(self) -> str:
        if self.live:
            return "measured, live"
        return f"measured, {OLDER_CODE if self.recording.older_code else 'recorded'}"

    def _attributes(self) -> str:
        if self.live:
            return f' data-live="{escape(self.recording.experiment)}"'
        return f' data-recording="{escape(self.recording.file_name)}"'


@dataclass(frozen=True)
class Cited(Evidence):
    """Somebody else's figure; ``source`` is a key of references.bib, which the book's build looks up."""

    source: str = ""
    kind: ClassVar[str] = "cited"

    def __post_init__(self):
        """Refuse a citation without a source."""
        super().__post_init__()
        if not self.source:
            raise ValueError(f"Cited({self.content!r}) needs source=, a key of references.bib")

    def detail(self) -> str:
        """Name the source; the built book puts the bibliography's line here."""
        return self.source

    def _attributes(self) -> str:
        return f' data-cite="{escape(self.source)}"'


def _check_recording(result: Computed | Compiled | Measured, *, live: bool) -> None:
    recording, made_by = result.recording, f"{type(result).__name__}({_text(result.content, result.spec)!r})"
    if not isinstance(recording, Recording):
        raise TypeError(f"{made_by} needs recording=, as chipmath.recordings.newest returns it, not {recording!r}")
    if recording.kind != result.kind:
        raise ValueError(f"{made_by}: {recording.file_name} is a {recording.kind} recording")
    if live and not is_taken_here(recording):
        raise ValueError(
            f"{made_by}: not live: chipmath.bench has not taken this {recording.experiment} in this process"
        )
    if not live and not is_recorded(recording):
        raise ValueError(f"{made_by}: kernels/chipmath/recorded/ has no {recording.file_name} with this content")


def _provenance(recording: Recording) -> str:
    changed = ": the experiment's code has changed since" if recording.older_code else ""
    return f"recorded{changed}. {recording.provenance()}"


def _finite(value: Any) -> None:
    """Raise ValueError for a number that is NaN or infinite."""
    if not isinstance(value, (str, Evidence)) and hasattr(value, "__float__") and not math.isfinite(float(value)):
        raise ValueError(f"a result must be finite, got {float(value)}")


def _text(content: Any, spec: str) -> str:
    if isinstance(content, Evidence):
        return str(content)
    if isinstance(content, str) or not hasattr(content, "__float__"):
        return str(content)
    # item() turns a NumPy or torch scalar into the Python number that every specification knows
    text = format(content.item() if hasattr(content, "item") else content, spec)
    return text.replace("-", MINUS)


def _plain_cell(value: Any, spec: str) -> str:
    if value is None:
        return "–"
    _finite(value)
    return _text(value, spec)


def _cell(value: Any, spec: str) -> str:
    if value is None:
        return "–"
    if isinstance(value, Evidence):
        return value.inline_html()
    return _breakable(escape(_text(value, spec)))


def _breakable(html: str) -> str:
    """Let a long name, such as an instruction's, break after a dot or an underscore where its table is too wide."""
    return re.sub(r"\S{16,}", lambda name: re.sub(r"(?<=[._])(?=\w)", "<wbr>", name[0]), html)
