"""Figures of the book: inline SVG whose ink follows the page's theme, with a PNG beside it for print.

Every function returns a `Figure` and requires `alt`, the text that says what a reader would see. Titles do not exist:
the caption comes from the page (`mystnb.figure`). Axis labels carry quantity and unit. Each drawing is laid out twice
with the same text size, for a column of 6.4 inches and for a phone; `_static/figures.css` shows the one that fits.

Colours come from `PALETTE` only, so that dark mode can lighten them; a series differs from the next one by marker, dash
or hatch as well. `AMD` and `NVIDIA` are the vendors' colours throughout the book: `colors={"H100": figures.NVIDIA}`.
Data that hold NaN or infinity raise ValueError and name the series.
"""

import base64
import hashlib
import io
import re
import textwrap
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.ticker import FuncFormatter, Locator, NullLocator, ScalarFormatter
from matplotlib.transforms import ScaledTranslation

BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"  # Okabe-Ito, at 3:1 or more on both faces
AMD, NVIDIA = ORANGE, GREEN
INK, FACE = "#222832", "#ffffff"  # what the PNG shows; the SVG takes the page's ink and face instead
PALETTE = {
    BLUE: f"var(--fig-blue, {BLUE})",
    ORANGE: f"var(--fig-orange, {ORANGE})",
    GREEN: f"var(--fig-green, {GREEN})",
    PURPLE: f"var(--fig-purple, {PURPLE})",
    INK: "currentColor",
    "#000000": "currentColor",  # matplotlib's own ink
    FACE: "var(--fig-face, Canvas)",
}
WIDTH, NARROW_WIDTH = 6.4, 3.45  # inches; in the narrow one SMALL is 10 px or more on a phone of 360 CSS pixels
SMALL = 8  # points; tick and value labels
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "chipmath",
    "font.family": ["DejaVu Sans"],  # comes with matplotlib and is wider than a page's font, so that nothing overflows
    "font.size": 9,
    "text.parse_math": False,  # mathtext would fix the font
    "text.color": INK,
    "legend.frameon": False,
    "legend.handlelength": 2.8,
    "legend.borderpad": 0,
    "legend.borderaxespad": 0,
    "legend.labelspacing": 0.35,
    "axes.edgecolor": (INK, 0.6),
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": (INK, 0.6),
    "ytick.color": (INK, 0.6),
    "xtick.labelcolor": (INK, 0.85),
    "ytick.labelcolor": (INK, 0.85),
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "grid.color": (INK, 0.16),
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "hatch.linewidth": 1.0,
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03,
}
_BASES = {"log2": 2, "log10": 10}


class _Look(NamedTuple):
    color: Any
    marker: str
    dash: Any
    hatch: str


# The vendors' colours come last, so that a plot without devices rarely borrows them.
_LOOKS = (
    _Look(BLUE, "o", "-", ""),
    _Look(PURPLE, "s", (0, (4, 1.4)), "////"),
    _Look(INK, "^", (0, (1, 1.2)), "\\\\\\\\"),
    _Look((INK, 0.6), "P", (0, (3, 1.2, 1, 1.2, 1, 1.2)), "++++"),
    _Look(ORANGE, "D", (0, (6, 1.4, 1, 1.4)), "xxxx"),
    _Look(GREEN, "v", (0, (9, 2)), "||||"),
)


@dataclass(frozen=True)
class Figure:
    """A finished figure: `svg` for the column, `narrow` for a phone, `png` for print, `alt` for who cannot see it."""

    svg: str = field(repr=False)
    narrow: str = field(repr=False)
    png: bytes = field(repr=False)
    alt: str

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {
            "text/html": f'<div class="themed-figure">{self.svg}{self.narrow}</div>',
            "image/png": base64.b64encode(self.png).decode("ascii"),
            "text/plain": self.alt,
        }


def draw(
    paint: Callable[[Axes], None],
    *,
    xlabel: str,
    ylabel: str,
    alt: str,
    xscale: str = "linear",
    yscale: str = "linear",
    height: float = 3.4,
) -> Figure:
    """Turn a plot of your own into a themed figure.

    paint    called with a styled Axes, once for each of the two layouts; labelled artists get a legend above the plot
    xlabel   quantity and unit of the horizontal axis; ylabel likewise, written level at the top left
    alt      what a reader would see
    xscale   "linear", "log2" or "log10"; yscale likewise
    height   inches, the same for both layouts
    raises   ValueError where a text is empty, a scale unknown or a colour not of `PALETTE`
    """
    _require_text(alt=alt, xlabel=xlabel, ylabel=ylabel)

    def on_axes(ax: Axes) -> None:
        _set_scale(ax, "x", xscale)
        _set_scale(ax, "y", yscale)
        ax.grid(axis="y")
        paint(ax)
        _write_labels(ax, xlabel, ylabel)

    return _figure(on_axes, alt, height)


def sketch(paint: Callable[[Axes], None], *, alt: str, height: float) -> Figure:
    """Turn a diagram of your own, without axes, into a themed figure; arguments and errors as in `draw`."""
    _require_text(alt=alt)

    def without_axes(ax: Axes) -> None:
        ax.set_axis_off()
        paint(ax)

    return _figure(without_axes, alt, height)


def mark_x(ax: Axes, value: float, text: str, *, side: str = "right") -> None:
    """Draw a vertical reference line at `value`, its text at the top on its right or left. Call it after the data."""
    dx = {"right": 4, "left": -4}[side]
    if not ax.yaxis_inverted():
        _keep_headroom(ax, ax.dataLim.y1)
    ax.axvline(value, color=(INK, 0.6), linewidth=1, linestyle=(0, (3, 2)), zorder=1.5)
    ax.annotate(text, (value, 1), (dx, -2), xycoords=("data", "axes fraction"), textcoords="offset points",
                ha="left" if dx > 0 else "right", va="top", fontsize=SMALL, bbox=_halo())  # fmt: skip


def mark_y(ax: Axes, value: float, text: str) -> None:
    """Draw a horizontal reference line at `value`, with its text above its left end. Call it after the data."""
    ax.axhline(value, color=(INK, 0.6), linewidth=1, linestyle=(0, (3, 2)), zorder=1.5)
    _keep_headroom(ax, value)
    ax.annotate(text, (0, value), (4, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
                va="bottom", fontsize=SMALL, bbox=_halo())  # fmt: skip


def lines(
    x: Sequence[float],
    series: Mapping[str, Sequence[float]],
    *,
    xlabel: str,
    ylabel: str,
    alt: str,
    xscale: str = "linear",
    yscale: str = "linear",
    step: bool = False,
    gaps: bool = False,
    y_from_zero: bool = False,
    spread: Mapping[str, tuple] | None = None,
    colors: Mapping[str, str] | None = None,
    x_marks: Mapping[str, float] | None = None,
    y_marks: Mapping[str, float] | None = None,
    height: float = 3.4,
) -> Figure:
    """Lines over a shared `x`.

    series        label -> values, one for each x; at most six
    xscale        "linear", "log2" or "log10"; yscale likewise
    step          a staircase: each value holds around its x
    gaps          allow NaN in `series`, drawn as a gap
    spread        label -> (low, high), drawn as a band
    colors        label -> colour of `PALETTE`, for the vendors
    x_marks       text -> position of a reference line; y_marks likewise
    """
    x = _numbers("x", x)
    series = {label: _numbers(label, values, x.size, gaps) for label, values in series.items()}
    looks, bands = _looks(series, colors), _bands(series, spread, yscale, gaps)
    _require_positive(xscale, {"x": x})
    _require_positive(yscale, series)
    _check_axes(xscale, yscale, x_marks, y_marks, y_from_zero)
    line_step, band_step = ("steps-mid", "mid") if step else ("default", None)

    def paint(ax: Axes) -> None:
        for (label, values), look in zip(series.items(), looks):
            if label in bands:
                ax.fill_between(x, *bands[label], color=look.color, alpha=0.22, linewidth=0, step=band_step)
            ax.plot(x, values, color=look.color, linestyle=look.dash, label=label, marker=look.marker,
                    markevery=_every(x.size, looks.index(look)), markeredgecolor=FACE, markeredgewidth=0.8,
                    drawstyle=line_step)  # fmt: skip
        _finish(ax, x_marks, y_marks, y_from_zero)

    return draw(paint, xlabel=xlabel, ylabel=ylabel, alt=alt, xscale=xscale, yscale=yscale, height=height)


def points(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    xlabel: str,
    ylabel: str,
    alt: str,
    xscale: str = "linear",
    yscale: str = "linear",
    joined: bool = False,
    y_from_zero: bool = False,
    spread: Mapping[str, tuple] | None = None,
    colors: Mapping[str, str] | None = None,
    x_marks: Mapping[str, float] | None = None,
    y_marks: Mapping[str, float] | None = None,
    height: float = 3.4,
) -> Figure:
    """Points whose series each have their own x: series maps a label to (x, y).

    joined   connect the points of a series
    spread   label -> (low, high) of y, drawn as whiskers
    others   as in `lines`
    """
    xs = {label: _numbers(label, x) for label, (x, _) in series.items()}
    ys = {label: _numbers(label, y, xs[label].size) for label, (_, y) in series.items()}
    looks, bands = _looks(ys, colors), _bands(ys, spread, yscale)
    _require_positive(xscale, xs)
    _require_positive(yscale, ys)
    _check_axes(xscale, yscale, x_marks, y_marks, y_from_zero)

    def paint(ax: Axes) -> None:
        for label, look in zip(ys, looks):
            if label in bands:
                _whiskers(ax, xs[label], *bands[label], look.color, level=False)
            ax.plot(xs[label], ys[label], color=look.color, linestyle=look.dash if joined else "none", label=label,
                    marker=look.marker, markersize=6.5, markeredgecolor=FACE, markeredgewidth=0.8)  # fmt: skip
        _finish(ax, x_marks, y_marks, y_from_zero)

    return draw(paint, xlabel=xlabel, ylabel=ylabel, alt=alt, xscale=xscale, yscale=yscale, height=height)


def bars(
    labels: Sequence[str],
    series: Mapping[str, Sequence[float]],
    *,
    xlabel: str,
    ylabel: str,
    alt: str,
    value_format: str | None = None,
    gaps: bool = False,
    spread: Mapping[str, tuple] | None = None,
    colors: Mapping[str, str] | None = None,
    x_marks: Mapping[str, float] | None = None,
) -> Figure:
    """Horizontal bars from zero, grouped by label: horizontal, so that long names stay level and fit a phone.

    labels         one name a group, top to bottom; ylabel says what they are, xlabel what the bars measure
    series         label -> values, one for each group
    value_format   such as "{:.2f}": write each value at the end of its bar
    gaps           allow NaN: the group has no such bar, and the others close up
    spread         label -> (low, high), drawn as whiskers; NaN where the bar is missing
    others         as in `lines`
    """
    series = {label: _numbers(label, values, len(labels), gaps) for label, values in series.items()}
    looks, bands = _looks(series, colors), _bands(series, spread, gaps=gaps)
    _require_on_axis(x_marks, "linear")
    if value_format is not None and value_format.format(1.0) == value_format:
        raise ValueError(f"value_format {value_format!r} has no field such as {{:.2f}}")
    there = np.isfinite(list(series.values()))
    thickness = 0.78 / there.sum(0).max()
    offsets = (np.cumsum(there, 0) - (there.sum(0) + 1) / 2) * thickness

    def paint(ax: Axes) -> None:
        for label, look, shown, offset in zip(series, looks, there, offsets):
            y, values = (np.arange(len(labels)) + offset)[shown], series[label][shown]
            low, high = (end[shown] for end in bands.get(label, (series[label], series[label])))
            _hatched_bars(ax, y, 0, values, thickness * 0.9, look, label)
            if label in bands:
                ax.hlines(y, low, high, color=FACE, linewidth=3.2)  # sets the whisker off from a bar of its colour
                _whiskers(ax, y, low, high, INK, level=True)
            if value_format is not None:
                _bar_values(ax, y, values, np.minimum(low, values), np.maximum(high, values), value_format)
        ax.axvline(0, color=(INK, 0.6), linewidth=0.8)
        _category_rows(ax, labels, headroom=0.8 if x_marks else 0.55)
        for text, value in (x_marks or {}).items():
            mark_x(ax, value, text)

    height = 0.75 + len(labels) * (0.16 + 0.19 * there.sum(0).max())
    return draw(paint, xlabel=xlabel, ylabel=ylabel, alt=alt, height=height)


def histogram(
    values: Sequence[float] | Mapping[str, Sequence[float]],
    *,
    xlabel: str,
    ylabel: str,
    alt: str,
    bins: int = 50,
    xscale: str = "linear",
    yscale: str = "linear",
    colors: Mapping[str, str] | None = None,
    x_marks: Mapping[str, float] | None = None,
    height: float = 3.2,
) -> Figure:
    """Counts of `values`, or of several sets (label -> values), over common bins that are even on the chosen xscale."""
    several = values if isinstance(values, Mapping) else {"values": values}
    several = {label: _numbers(label, v).ravel() for label, v in several.items()}
    _require_positive(xscale, several)
    _require_on_axis(x_marks, xscale)
    if bins < 1:
        raise ValueError(f"bins={bins}: a histogram has one or more")
    looks, edges = _looks(several, colors), _bin_edges(several, bins, xscale)
    counts = {label: np.histogram(v, edges)[0] for label, v in several.items()}

    def paint(ax: Axes) -> None:
        solid = 0.85 if len(counts) == 1 else 0.22
        for (label, count), look in zip(counts.items(), looks):
            name = label if len(counts) > 1 else "_"
            ax.stairs(count, edges, fill=True, color=look.color, alpha=solid, linewidth=0)
            if len(counts) > 1:
                ax.stairs(count, edges, color=look.color, linestyle=look.dash, linewidth=1.6, label=name)
        _finish(ax, x_marks, None, y_from_zero=yscale == "linear")

    return draw(paint, xlabel=xlabel, ylabel=ylabel, alt=alt, xscale=xscale, yscale=yscale, height=height)


def number_line(
    rows: Mapping[str, Sequence[float]], *, xlabel: str, ylabel: str, alt: str, xscale: str = "log2"
) -> Figure:
    """The representable values of several formats, one row each.

    rows     name -> values
    xscale   "log2" (positive values only), "linear", or "symlog2": linear up to the smallest magnitude, log2 beyond
    """
    rows = {name: _numbers(name, values) for name, values in rows.items()}
    if not any(values.any() for values in rows.values()):
        raise ValueError(f"no number but zero in the rows {list(rows)}")
    _require_positive(xscale, rows)
    everything = np.abs(np.concatenate(list(rows.values())))

    def paint(ax: Axes) -> None:
        if xscale == "symlog2":
            _set_symmetric_scale(ax, everything[everything > 0].min(), everything.max())
        for i, values in enumerate(rows.values()):
            ax.axhline(i, color=(INK, 0.25), linewidth=0.8, zorder=1)
            ends = np.stack([np.repeat(values, 2), np.tile([i - 0.3, i + 0.3], values.size)], axis=-1)
            strokes = Path(ends, [Path.MOVETO, Path.LINETO] * values.size)
            ax.add_patch(PathPatch(strokes, edgecolor=BLUE, facecolor="none", linewidth=0.15 * _width(ax)))
        ax.autoscale_view()
        _category_rows(ax, list(rows))

    height = 0.7 + 0.42 * len(rows)
    scale = "linear" if xscale == "symlog2" else xscale
    return draw(paint, xlabel=xlabel, ylabel=ylabel, alt=alt, xscale=scale, height=height)


def bit_layout(rows: Mapping[str, Sequence[tuple[str, int | str]]], *, alt: str, unit: str = "bit") -> Figure:
    """Fields of one or more formats as cells to a common scale.

    rows   name -> fields from left to right, each (field name, cells): a number of cells, which show the name's
           initial, or a string whose characters fill them, such as ("exponent", "1111")
    unit   what a cell is, "bit" or "byte"; it is counted in the row's heading
    """
    names = list(dict.fromkeys(name for fields in rows.values() for name, _ in fields))
    looks = dict(zip(names, (_LOOKS[2], *_LOOKS[:2], *_LOOKS[3:])))
    longest = max(sum(_cell_count(cells) for _, cells in fields) for fields in rows.values())

    def paint(ax: Axes) -> None:
        room = _width(ax) * 72 - 8  # points, and so are the units of x
        cell = min(44.0, room / longest)
        for i, (row, fields) in enumerate(rows.items()):
            total = sum(_cell_count(cells) for _, cells in fields)
            ax.text(0, i - 0.32, f"{row} · {total} {unit}{'s' * (total > 1)}", va="bottom")
            _row_of_cells(ax, fields, looks, i, cell)
        margin = (room - longest * cell) / 2 + 2
        ax.set(xlim=(-margin, room - margin + 4), ylim=(len(rows) - 0.68, -0.7))

    return sketch(paint, alt=alt, height=0.08 + 0.74 * len(rows))


# --- checks at the edge ---


def _require_text(**texts: str) -> None:
    for name, text in texts.items():
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{name} is empty: say what the figure shows" if name == "alt" else f"{name} is empty")


def _require_positive(scale: str, series: Mapping[str, np.ndarray]) -> None:
    for label, values in series.items():
        if scale in _BASES and np.nanmin(values) <= 0:
            raise ValueError(f"{label}: {np.nanmin(values):g} cannot stand on a {scale} axis")


def _numbers(label: str, values: Sequence[float], size: int | None = None, gaps: bool = False) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.size == 0 or (size is not None and array.size != size):
        raise ValueError(f"{label}: {array.size} values, expected {size or 'at least one'}")
    wrong = np.isinf(array) if gaps else ~np.isfinite(array)
    if wrong.any() or np.isnan(array).all():
        raise ValueError(f"{label}: {(~np.isfinite(array)).sum()} of {array.size} values are NaN or infinite")
    return array


def _known(series: Mapping, chosen: Mapping | None) -> Mapping:
    for label in chosen or {}:
        if label not in series:
            raise ValueError(f"{label!r} is not a series; they are {list(series)}")
    return chosen or {}


def _bands(
    series: Mapping[str, np.ndarray], spread: Mapping[str, tuple] | None, scale: str = "linear", gaps: bool = False
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    bands = {}
    for label, ends in _known(series, spread).items():
        name = f"{label}, spread"
        if len(ends) != 2:
            raise ValueError(f"{name}: {len(ends)} ends, expected (low, high)")
        low, high = (_numbers(name, end, series[label].size, gaps) for end in ends)
        if (low > high).any():
            at = int((low > high).argmax())
            raise ValueError(f"{name}: low {low[at]:g} is above high {high[at]:g}")
        _require_positive(scale, {name: low})
        bands[label] = low, high
    return bands


def _check_axes(xscale: str, yscale: str, x_marks: Mapping | None, y_marks: Mapping | None, y_from_zero: bool) -> None:
    _require_on_axis(x_marks, xscale)
    _require_on_axis(y_marks, yscale)
    if y_from_zero and yscale in _BASES:
        raise ValueError(f"y_from_zero: zero cannot stand on a {yscale} axis")


def _require_on_axis(marks: Mapping[str, float] | None, scale: str) -> None:
    """A reference line that cannot be drawn would be missing without a word."""
    for text, value in (marks or {}).items():
        _require_positive(scale, {text: _numbers(text, [value])})


def _looks(series: Mapping, colors: Mapping[str, str] | None) -> list[_Look]:
    if not 1 <= len(series) <= len(_LOOKS):
        raise ValueError(f"{len(series)} series; a figure holds 1 to {len(_LOOKS)} that stay distinct")
    chosen = _known(series, colors)
    return [look._replace(color=chosen.get(label, look.color)) for label, look in zip(series, _LOOKS)]


# --- pieces of a drawing ---


def _every(size: int, index: int) -> Any:
    """Markers on all points of a short line; on a long one a few, shifted so that coinciding lines both show theirs."""
    stride = max(size // 8, 1)
    return 1 if size <= 24 else (index * stride // len(_LOOKS), stride)


def _halo() -> dict:
    return {"facecolor": (FACE, 0.85), "edgecolor": "none", "pad": 0.5}


def _width(ax: Axes) -> float:
    """Width of the layout being drawn, in inches."""
    return ax.get_figure().get_figwidth()


def _finish(ax: Axes, x_marks: Mapping | None, y_marks: Mapping | None, y_from_zero: bool) -> None:
    if y_from_zero:
        ax.set_ylim(bottom=0)
    # Texts of two lines that stand close would meet between them on a phone: only the last one's is on the right.
    for text, value in (x_marks or {}).items():
        mark_x(ax, value, text, side="right" if value == max(x_marks.values()) else "left")
    for text, value in (y_marks or {}).items():
        mark_y(ax, value, text)


def _keep_headroom(ax: Axes, value: float) -> None:
    """Raise the upper limit so far that text above a line at `value` stays inside the plot."""
    to_scale = ax.yaxis.get_transform()
    (low, high), line = to_scale.transform(np.array(ax.get_ylim())), to_scale.transform(np.array([value]))[0]
    room = 1 - 14 / (72 * 0.75 * ax.get_figure().get_figheight())
    if line > low + room * (high - low):
        ax.set_ylim(top=to_scale.inverted().transform(np.array([low + (line - low) / room]))[0])


class _PlainFormatter(ScalarFormatter):
    """Digits with separators of thousands and a true minus, never an offset."""

    def __call__(self, value: float, pos: int | None = None) -> str:
        whole, point, part = super().__call__(value, pos).partition(".")
        return re.sub(r"(?<=\d)(?=(\d{3})+$)", ",", whole) + point + part


class _PowerLocator(Locator):
    """Powers of the base at a stride that fits the axis; a short decimal axis gets digits between them too."""

    def __init__(self, base: int) -> None:
        self.base = base

    def __call__(self) -> np.ndarray:
        return self.tick_values(*sorted(self.axis.get_view_interval()))

    def tick_values(self, vmin: float, vmax: float) -> np.ndarray:
        low, high = np.log(vmin) / np.log(self.base) - 1e-9, np.log(vmax) / np.log(self.base) + 1e-9
        digits = [1]
        if self.base == 10 and high - low < 2:
            digits = [1, 2, 5] if high - low > 0.8 else range(1, 10)
        powers = np.add.outer(np.arange(np.floor(low), np.ceil(high) + 1), np.emath.logn(self.base, digits)).ravel()
        powers = powers[(powers >= low) & (powers <= high)]
        room = max(2, min(9, self.axis.get_tick_space()))
        stride = next(2**n for n in range(12) if len(powers) <= 2**n * room)
        return self.base ** (powers[powers % stride == 0] if len(digits) == 1 else powers)


def _set_scale(ax: Axes, which: str, scale: str) -> None:
    axis, set_scale = (ax.xaxis, ax.set_xscale) if which == "x" else (ax.yaxis, ax.set_yscale)
    if scale in _BASES:
        set_scale("log", base=_BASES[scale])
        axis.set_major_locator(_PowerLocator(_BASES[scale]))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: _power_or_number(value, _BASES[scale])))
    elif scale == "linear":
        axis.set_major_formatter(_PlainFormatter(useOffset=False))
        axis.get_major_formatter().set_scientific(False)
    else:
        raise ValueError(f"{which}scale {scale!r}: choose linear, log2 or log10")


def _set_symmetric_scale(ax: Axes, smallest: float, largest: float) -> None:
    """Zero, and at most four (on a phone three) powers of two at either side."""
    ax.set_xscale("symlog", base=2, linthresh=smallest)
    top, bottom = np.floor(np.log2(largest)), np.ceil(np.log2(smallest))
    stride = np.ceil((top - bottom + 1) / (4 if _width(ax) == WIDTH else 3))
    powers = 2.0 ** np.arange(top, bottom - 1, -max(stride, 1))
    ax.set_xticks([*-powers, 0, *powers[::-1]])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _power_or_number(value)))


def _power_or_number(value: float, base: int = 2) -> str:
    """Write 2⁻⁹ for a far power of the base, and plain digits for all else."""
    exponent = np.log(abs(value)) / np.log(base) if value else 0.0
    nearest = round(exponent)
    if abs(exponent - nearest) < 1e-9 and not {2: -2, 10: -3}[base] <= nearest <= {2: 10, 10: 4}[base]:
        return f"{'−' if value < 0 else ''}{power(base, nearest)}"
    return _written(value, "{:,.6g}")


def power(base: int, exponent: int) -> str:
    """Write 2⁻⁹ with Unicode's raised digits: for axes, and for cells of tables, which hold text and no markup."""
    return f"{base}{str(exponent).translate(RAISED)}"


def _written(value: float, value_format: str) -> str:
    return value_format.format(value).replace("-", "−")


def _category_rows(ax: Axes, labels: Sequence[str], headroom: float = 0.55) -> None:
    """One row a label, the first at the top."""
    ax.set_yticks(range(len(labels)), labels, fontsize=9, color=INK)
    ax.set_ylim(len(labels) - 0.45, -headroom)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(visible=False, axis="y")
    ax.grid(axis="x")


def _hatched_bars(ax: Axes, y, start, length, thickness: float, look: _Look, label: str) -> None:
    """Solid without a hatch; else a light fill below a hatch, because an SVG hatch cannot hold a translucent face."""
    if not look.hatch:
        ax.barh(y, length, thickness, start, color=look.color, label=label)
        return
    ax.barh(y, length, thickness, start, color=look.color, alpha=0.18)
    ax.barh(y, length, thickness, start, facecolor="none", edgecolor=look.color, hatch=look.hatch, label=label)


def _beside(ax: Axes, x: float, y: float, text: str, side: int) -> None:
    ax.annotate(text, (x, y), (4 * side, 0), textcoords="offset points", va="center_baseline",
                ha="left" if side > 0 else "right", fontsize=SMALL, bbox=_halo(), annotation_clip=False)  # fmt: skip


def _whiskers(ax: Axes, at, low, high, color: Any, *, level: bool) -> None:
    draw_lines, cap = (ax.hlines, "|") if level else (ax.vlines, "_")
    draw_lines(at, low, high, color=color, linewidth=1.2)
    for end in (low, high):
        x, y = (end, at) if level else (at, end)
        ax.plot(x, y, linestyle="none", marker=cap, markersize=6, markeredgewidth=1.2, color=color)


def _bar_values(ax: Axes, y, values, low, high, value_format: str) -> None:
    for i, value in enumerate(values):
        _beside(ax, high[i] if value >= 0 else low[i], y[i], _written(value, value_format), 1 if value >= 0 else -1)
    if low.min() < 0:  # room for the text between the longest bar and the names of the rows
        left, right = ax.get_xlim()
        ax.set_xlim(left=min(left, low.min() - 0.6 / _width(ax) * (right - left)))


def _bin_edges(several: Mapping[str, np.ndarray], bins: int, xscale: str) -> np.ndarray:
    low, high = min(v.min() for v in several.values()), max(v.max() for v in several.values())
    if xscale == "linear":
        return np.linspace(low, high if high > low else low + 1, bins + 1)
    edges = np.geomspace(low, high if high > low else 2 * low, bins + 1)
    edges[0], edges[-1] = low, max(high, edges[-1])  # geomspace may miss an end by an ulp, and with it a value
    return edges


def _cell_count(cells: int | str) -> int:
    return len(cells) if isinstance(cells, str) else cells


def _row_of_cells(ax: Axes, fields: Sequence[tuple[str, int | str]], looks: Mapping, row: float, cell: float) -> None:
    left = 0.0
    for name, cells in fields:
        count, look = _cell_count(cells), looks[name]
        initial = next(letter for letter in name if letter.isalpha())
        text = cells if isinstance(cells, str) else initial.upper() * count
        for j in range(count):
            corner, width = (left + j * cell + 0.75, row - 0.26), cell - (0.75 if j < count - 1 else 1.5)
            ax.add_patch(Rectangle(corner, width, 0.36, facecolor=(look.color, 0.2), edgecolor=look.color))
            if cell > 9:
                ax.text(left + (j + 0.5) * cell, row - 0.08, text[j], ha="center", va="center_baseline")
        # An estimate of the text's width in points; where it does not fit, the initial in the cells has to do.
        name_width = len(name) * 4.9
        middle = max(left + count * cell / 2, name_width / 2)
        if name_width <= max(count * cell, 40):
            ax.text(middle, row + 0.14, name, ha="center", va="top", fontsize=SMALL)
        left += count * cell


# --- layout and output ---


def _figure(paint: Callable[[Axes], None], alt: str, height: float) -> Figure:
    # "default" shuts out the reader's matplotlibrc: the same data give the same bytes everywhere.
    with matplotlib.style.context(["default", _STYLE]):
        wide, narrow = (_layout(paint, width, height) for width in (WIDTH, NARROW_WIDTH))
        return Figure(_themed_svg(wide, alt, "wide"), _themed_svg(narrow, alt, "narrow"), _png(wide), alt)


def _layout(paint: Callable[[Axes], None], width: float, height: float) -> Canvas:
    fig = Canvas(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(fig)
    paint(fig.add_subplot())
    return fig


def _write_labels(ax: Axes, xlabel: str, ylabel: str) -> None:
    """The label of the vertical axis stands level above it, and the legend above that."""
    letters = int(_width(ax) * 11) - 2  # that fit the width; a longer label takes another line
    ax.set_xlabel(textwrap.fill(xlabel, letters))
    above = textwrap.fill(ylabel, letters)
    # A text of its own: the layout engine gives a true y label no height.
    ax.annotate(above, (0, 1), (0, 6), xycoords="axes fraction", textcoords="offset points", va="bottom")
    _legend_above(ax, 22 + 11 * above.count("\n"))


def _legend_above(ax: Axes, points_above: float) -> None:
    """Put the legend above the plot, in as few lines as its width allows; a long label takes two."""
    handles, labels = ax.get_legend_handles_labels()
    count, letters = len(labels), int(_width(ax) * 11) - 6  # that fit beside a handle
    if count < 2:
        return
    labels = [textwrap.fill(label, letters) for label in labels]
    fig = ax.get_figure()
    fig.draw_without_rendering()
    room = fig.bbox.x1 - ax.get_window_extent().x0
    above = ax.transAxes + ScaledTranslation(0, points_above / 72, fig.dpi_scale_trans)
    for rows in range(1, count + 1):
        at = {"loc": "lower left", "bbox_to_anchor": (0, 1), "bbox_transform": above}
        legend = ax.legend(handles, labels, ncols=-(-count // rows), **at)
        if legend.get_window_extent(fig.canvas.get_renderer()).width <= room:
            return


def _png(fig: Canvas) -> bytes:
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=160, facecolor=FACE, metadata={"Software": None})
    return buffer.getvalue()


def _themed_svg(fig: Canvas, alt: str, layout: str) -> str:
    """Matplotlib's SVG made fit to stand in a page: own ids, the page's ink and font, the alt text, no global style."""
    buffer = io.StringIO()
    fig.savefig(buffer, format="svg", facecolor="none", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    raw = buffer.getvalue()
    prefix = "fig-" + hashlib.sha256(f"{alt}\0{layout}\0{raw}".encode()).hexdigest()[:12]
    root = _plain_element(ElementTree.fromstring(raw))
    used = dict.fromkeys(re.findall(r"(?:url\(|href=\")#([\w-]+)", ElementTree.tostring(root, "unicode")))
    ids = {name: f"{prefix}-{number}" for number, name in enumerate(used)}
    for element in root.iter():
        kept = {key: value for key, value in element.attrib.items() if key != "id" or value in ids}
        themed = {key: _themed(key, value, ids) for key, value in kept.items()}
        element.attrib = {key: value for key, value in themed.items() if value}
    # Without our style sheet, as in a live notebook, the wide layout shows. Matplotlib leaves out fills that are black.
    shown = "max-width:46rem" if layout == "wide" else "display:none;max-width:30rem"
    root.attrib = {
        "class": layout,
        "role": "img",
        "aria-label": alt,
        "viewBox": root.get("viewBox", ""),
        "style": f"{shown};width:100%;height:auto;fill:currentColor;stroke-linejoin:round",
    }
    return ElementTree.tostring(root, "unicode")


def _plain_element(element: ElementTree.Element) -> ElementTree.Element:
    """Copy without namespaces, metadata, idle groups, and the <style> that would reach the whole page."""
    plain = ElementTree.Element(element.tag.rpartition("}")[2])
    plain.attrib = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
    plain.text = (element.text or "").strip() or None
    if plain.tag == "g":
        plain.attrib.pop("id", None)
    for child in map(_plain_element, element):
        if child.tag == "g" and not child.attrib:
            plain.extend(child)
        elif child.tag not in ("metadata", "style") and (child.tag != "defs" or len(child)):
            plain.append(child)
    markers = plain.findall("use")
    styles = {marker.get("style", "") for marker in markers}
    if len(markers) > 1 and len(styles) == 1 and {child.tag for child in plain} <= {"use", "defs"}:
        plain.set("style", styles.pop())  # the markers of a series repeat their style: say it once
        for marker in markers:
            marker.attrib.pop("style", None)
    return plain


def _themed(key: str, value: str, ids: Mapping[str, str]) -> str:
    if key == "id":
        return ids[value]
    value = re.sub(r"rotate\(-0 [^)]*\)", "", value)
    value = re.sub(r"(?<=#)[\w-]+(?=\)|$)", lambda m: ids.get(m[0], m[0]), value)
    if key in ("style", "fill", "stroke"):
        value = re.sub(r"#[0-9a-f]{6}\b(?![-\w)])", _palette_colour, value)
        value = re.sub(r"font-family:[^;]*;?|font-stretch:[^;]*;?", "", value)
        value = re.sub(r"font: [^;]*?([\d.]+px)[^;]*", r"font-size: \1", value)  # matplotlib before 3.9
    value = re.sub(r"\d+\.\d{3,}", lambda m: f"{float(m[0]):.2f}".rstrip("0").rstrip("."), value)
    return " ".join(value.split())


def _palette_colour(match: re.Match) -> str:
    if match[0] not in PALETTE:
        raise ValueError(f"colour {match[0]} cannot follow the theme; use one of {', '.join(PALETTE)}")
    return PALETTE[match[0]]
