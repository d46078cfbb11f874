"""Figures: readable in light, dark and print, on a phone, without colour, without sight; the same bytes every time."""

import functools
import hashlib
import inspect
import io
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from chipmath import figures

ROOT = Path(__file__).parents[1]
LABELS = {"xlabel": "size (bytes)", "ylabel": "time (ms)"}
ALT = 'Rows < columns & "both": a line from 1 to 3 − nothing else.'
SERIES = {name: np.arange(1.0, 5.0) + i for i, name in enumerate("abcdef")}

# One small call of every kind; further tests walk them all.
KINDS = {
    "lines": lambda alt: figures.lines([1, 2, 4, 8], SERIES, **LABELS, alt=alt, xscale="log2", x_marks={"line": 4}),
    "stairs": lambda alt: figures.lines(
        range(40), {"a": np.arange(40)}, **LABELS, alt=alt, step=True, spread={"a": (np.arange(40) - 1, range(40))}
    ),
    "points": lambda alt: figures.points(
        {"a": ([1, 2], [3, 4]), "b": ([5], [6])},
        **LABELS,
        alt=alt,
        joined=True,
        spread={"b": ([5], [7])},
        colors={"a": figures.AMD, "b": figures.NVIDIA},
        y_marks={"peak": 8},
    ),
    "bars": lambda alt: figures.bars(
        ["rows", "columns"], {k: v[:2] for k, v in SERIES.items()}, **LABELS, alt=alt, value_format="{:.1f}"
    ),
    "histogram": lambda alt: figures.histogram({"a": np.arange(99.0), "b": np.arange(50.0)}, **LABELS, alt=alt),
    "number_line": lambda alt: figures.number_line({"E2M1": [0.5, 1, 1.5, 2, 3, 4, 6]}, **LABELS, alt=alt),
    "number_line, signed": lambda alt: figures.number_line({"E2M1": [-6, 0, 0.5]}, **LABELS, alt=alt, xscale="symlog2"),
    "bit_layout": lambda alt: figures.bit_layout({"E4M3": [("sign", 1), ("exponent", "1111"), ("m", 3)]}, alt=alt),
    "draw": lambda alt: figures.draw(lambda ax: ax.plot([1, 2], color="black"), **LABELS, alt=alt),
    "sketch": lambda alt: figures.sketch(lambda ax: ax.text(0, 0, "$HOME"), alt=alt, height=1),
}
KINDS = {name: functools.cache(make) for name, make in KINDS.items()}
kinds = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


def layouts(figure):
    """Both layouts as elements."""
    return [ElementTree.fromstring(svg) for svg in (figure.svg, figure.narrow)]


def texts(root):
    return [element.text for element in root.iter("text")]


def ids(figure):
    return re.findall(r'\bid="([^"]+)"', figure.svg + figure.narrow)


# --- alt text ---


@kinds
def test_alt_is_required_and_stands_in_the_svg_exactly(make):
    for root in layouts(make(ALT)):
        assert root.get("role") == "img"
        assert root.get("aria-label") == ALT
    for empty in ("", " \n"):
        with pytest.raises(ValueError, match="alt is empty"):
            make(empty)


def test_alt_has_no_default():
    for function in (
        "draw",
        "sketch",
        "lines",
        "points",
        "bars",
        "histogram",
        "number_line",
        "bit_layout",
    ):
        parameter = inspect.signature(getattr(figures, function)).parameters["alt"]
        assert parameter.default is parameter.empty
        assert parameter.kind is parameter.KEYWORD_ONLY


def test_axis_labels_are_required():
    with pytest.raises(ValueError, match="ylabel is empty"):
        figures.lines([1, 2], {"a": [1, 2]}, xlabel="n", ylabel=" ", alt=ALT)


def test_mimebundle_holds_both_layouts_and_the_png():
    figure = KINDS["bars"](ALT)
    bundle = figure._repr_mimebundle_()
    assert set(bundle) == {"text/html", "image/png", "text/plain"}
    assert bundle["text/html"] == f'<div class="themed-figure">{figure.svg}{figure.narrow}</div>'
    assert bundle["text/plain"] == ALT
    assert bundle["image/png"].startswith("iVBOR")


# --- the same bytes, and ids of one's own ---

FINGERPRINT = """
import hashlib, sys
sys.path[:0] = sys.argv[1:]
import matplotlib
matplotlib.rcParams["axes.xmargin"] = 0.3  # a reader's own settings
import test_figures as t
for make in t.KINDS.values():
    figure = make(t.ALT)
    print(hashlib.sha256((figure.svg + figure.narrow).encode() + figure.png).hexdigest())
"""


def test_another_process_draws_the_same_bytes():
    path = [str(ROOT / "kernels"), str(Path(__file__).parent)]
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    run = subprocess.run(
        [sys.executable, "-c", FINGERPRINT, *path], capture_output=True, text=True, env=environment, check=True
    )
    here = [make(ALT) for make in KINDS.values()]
    assert run.stdout.split() == [hashlib.sha256((f.svg + f.narrow).encode() + f.png).hexdigest() for f in here]


def test_ids_are_unique_on_a_page_of_all_kinds():
    found = [name for make in KINDS.values() for name in ids(make(ALT))]
    found += ids(KINDS["bars"](ALT + " Another."))  # the same drawing told differently is another figure
    assert len(found) > 20
    assert len(found) == len(set(found))


@kinds
def test_references_stay_inside_the_svg(make):
    figure = make(ALT)
    for svg in (figure.svg, figure.narrow):
        own = set(re.findall(r'\bid="([^"]+)"', svg))
        assert own == set(re.findall(r'(?:url\(|href=")#([\w-]+)', svg))
    assert "<style" not in figure.svg  # it would reach the whole page
    assert "<metadata" not in figure.svg


# --- ink and colours ---


@kinds
def test_no_colour_is_hard_coded(make):
    figure = make(ALT)
    svg = (figure.svg + figure.narrow).replace(ElementTree.fromstring(figure.svg).get("aria-label"), "")
    allowed = {themed for themed in figures.PALETTE.values() if themed.startswith("var")}
    for colour in re.findall(r"(?:fill|stroke)(?:: |=\")([^;\"]+)", svg):
        assert colour in allowed | {"none", "currentColor"} or colour.startswith("url(#"), colour
    assert "currentColor" in svg
    assert "font-family" not in svg  # the page's font
    for element in ElementTree.fromstring(figure.svg).iter("text"):
        assert "fill: currentColor" in element.get("style")


def test_foreign_colours_are_refused():
    with pytest.raises(ValueError, match="#ff0000 cannot follow the theme"):
        figures.draw(lambda ax: ax.plot([1, 2], color="red"), **LABELS, alt=ALT)
    with pytest.raises(ValueError, match="'z' is not a series"):
        figures.lines([1], {"a": [1]}, **LABELS, alt=ALT, colors={"z": figures.AMD})


def luminance(colour):
    channel = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(channel <= 0.04045, channel / 12.92, ((channel + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def contrast(a, b):
    """WCAG 2 contrast ratio."""
    low, high = sorted([luminance(a), luminance(b)])
    return (high + 0.05) / (low + 0.05)


def css_colours(selector):
    css = (ROOT / "_static" / "figures.css").read_text()
    block = css[css.index(selector) :].partition("}")[0]
    return dict(re.findall(r"--fig-(blue|orange|green|purple): (#[0-9a-f]{6})", block))


def test_contrast_formula():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_series_reach_three_to_one_on_both_faces():
    light = {name: getattr(figures, name.upper()) for name in ("blue", "orange", "green", "purple")}
    dark = css_colours('html[data-theme="dark"] .themed-figure {')
    assert light == {"blue": "#0072b2", "orange": "#d55e00", "green": "#009e73", "purple": "#cc79a7"}
    assert css_colours("@media print") == light
    assert dark.keys() == light.keys()
    for name in light:
        assert contrast(light[name], "#ffffff") >= 3, name
        for face in ("#121212", "#14181e"):  # sphinx-book-theme 1.3, pydata-sphinx-theme 0.17
            assert contrast(light[name], face) >= 3, name
            assert contrast(dark[name], face) >= 4.5, name
    assert contrast(figures.INK, figures.FACE) >= 7


def test_vendors():
    assert (figures.AMD, figures.NVIDIA) == ("#d55e00", "#009e73")
    assert "var(--fig-orange" in KINDS["points"](ALT).svg
    assert "var(--fig-green" in KINDS["points"](ALT).svg


# --- what is drawn ---


@pytest.mark.parametrize("values", [[100.0, 101.0], [-5.0, -6.0], [-1.0, 3.0]])
def test_bars_start_at_a_zero_that_is_shown(values):
    for root in layouts(figures.bars(["a", "b"], {"one": values}, **LABELS, alt=ALT)):
        zero = [float(t.get("x")) for t in root.iter("text") if re.fullmatch(r"0(\.0+)?", t.text)]
        assert len(zero) == 1
        bars = [p for p in root.iter("path") if "var(--fig-blue" in p.get("style", "")]
        ends = [[float(x) for x, _ in re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", p.get("d"))] for p in bars]
        assert len(ends) == 2
        for value, xs in zip(values, ends):
            assert (min(xs) if value > 0 else max(xs)) == pytest.approx(zero[0], abs=0.05)


def test_missing_bars_leave_no_trace_and_only_where_allowed():
    arguments = {"a": [1.0, np.nan], "b": [np.nan, 2.0]}
    with pytest.raises(ValueError, match="a: 1 of 2 values are NaN"):
        figures.bars(["x", "y"], arguments, **LABELS, alt=ALT)
    figure = figures.bars(["x", "y"], arguments, **LABELS, alt=ALT, gaps=True, value_format="{:.1f}")
    assert "nan" not in figure.svg
    assert figure.svg.count("var(--fig-blue") == 1 + 1  # the bar and its key


def test_lines_differ_without_colour():
    colors = dict.fromkeys(SERIES, figures.BLUE)
    root = ElementTree.fromstring(figures.lines([1, 2, 3, 4], SERIES, **LABELS, alt=ALT, colors=colors).svg)
    dashes = {
        re.sub(r"stroke-dashoffset[^;]*|stroke-width[^;]*", "", path.get("style"))
        for path in root.iter("path")
        if "fill: none" in path.get("style", "") and "--fig-blue" in path.get("style")
    }
    assert len(dashes) == len(SERIES)
    markers = {path.get("d") for defs in root.iter("defs") for path in defs.iter("path")}
    assert len(markers) >= len(SERIES) + 2  # and the ticks of two axes


def test_bars_differ_without_colour():
    root = ElementTree.fromstring(KINDS["bars"](ALT).svg)
    hatches = {pattern.find("path").get("d") for pattern in root.iter("pattern")}
    assert len(hatches) == len(SERIES) - 1  # the first is solid


def test_more_series_than_can_differ_are_refused():
    with pytest.raises(ValueError, match="7 series"):
        figures.lines([1], {str(i): [1] for i in range(7)}, **LABELS, alt=ALT)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_values_name_their_series(bad):
    calls = {
        "rceil": lambda: figures.lines([1, 2], {"floor": [1, 2], "rceil": [1, bad]}, **LABELS, alt=ALT),
        "x": lambda: figures.lines([1, bad], {"floor": [1, 2]}, **LABELS, alt=ALT),
        "floor, spread": lambda: figures.lines(
            [1, 2], {"floor": [1, 2]}, **LABELS, alt=ALT, spread={"floor": ([0, 1], [2, bad])}
        ),
        "chain": lambda: figures.points({"chain": ([1, bad], [1, 2])}, **LABELS, alt=ALT),
        "Triton": lambda: figures.bars(["a", "b"], {"Triton": [1, bad]}, **LABELS, alt=ALT),
        "even": lambda: figures.histogram({"even": [1, bad]}, **LABELS, alt=ALT),
        "E2M1": lambda: figures.number_line({"E2M1": [1, bad]}, **LABELS, alt=ALT),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=f"^{name}: 1 of . values are NaN or infinite"):
            call()


def test_gaps_are_drawn_only_where_allowed():
    figure = figures.lines([1, 2, 3, 4], {"a": [1, np.nan, 3, 4]}, **LABELS, alt=ALT, gaps=True)
    assert "nan" not in figure.svg
    with pytest.raises(ValueError, match="a: 1 of 2"):
        figures.lines([1, 2], {"a": [1, np.inf]}, **LABELS, alt=ALT, gaps=True)
    with pytest.raises(ValueError, match="a: 2 of 2"):
        figures.lines([1, 2], {"a": [np.nan, np.nan]}, **LABELS, alt=ALT, gaps=True)


def test_lengths_and_scales_are_checked():
    with pytest.raises(ValueError, match="a: 3 values, expected 2"):
        figures.lines([1, 2], {"a": [1, 2, 3]}, **LABELS, alt=ALT)
    with pytest.raises(ValueError, match="a: 0 cannot stand on a log2 axis"):
        figures.lines([1, 2], {"a": [0, 2]}, **LABELS, alt=ALT, yscale="log2")
    with pytest.raises(ValueError, match="xscale 'log'"):
        figures.draw(lambda ax: None, **LABELS, alt=ALT, xscale="log")


def two(**options):
    return figures.lines([1, 2], {"a": [1, 2]}, **LABELS, **{"alt": ALT} | options)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("alt is empty", lambda: two(alt=None)),
        ("a, spread: 1 ends, expected .low, high.", lambda: two(spread={"a": ([0, 1],)})),
        ("a, spread: low 3 is above high 1", lambda: two(spread={"a": ([0, 3], [2, 1])})),
        ("a, spread: -1 cannot stand on a log2 axis", lambda: two(spread={"a": ([-1, 1], [2, 3])}, yscale="log2")),
        ("peak: 1 of 1 values are NaN or infinite", lambda: two(y_marks={"peak": np.nan})),
        ("edge: -1 cannot stand on a log10 axis", lambda: two(x_marks={"edge": -1}, xscale="log10")),
        ("y_from_zero: zero cannot stand on a log2 axis", lambda: two(y_from_zero=True, yscale="log2")),
        ("edge: 1 of 1 values", lambda: figures.histogram([1, 2], **LABELS, alt=ALT, x_marks={"edge": np.inf})),
        ("bins=0: a histogram has one or more", lambda: figures.histogram([1, 2], **LABELS, alt=ALT, bins=0)),
        ("value_format '.2f' has no field",
         lambda: figures.bars(["x"], {"a": [1]}, **LABELS, alt=ALT, value_format=".2f")),
        ("no number but zero in the rows .'a'.", lambda: figures.number_line({"a": [0]}, **LABELS, alt=ALT)),
        ("no number but zero in the rows ..", lambda: figures.number_line({}, **LABELS, alt=ALT)),
    ],
)  # fmt: skip
def test_what_would_be_drawn_wrongly_or_not_at_all_is_refused(message, call):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


def test_ticks_are_words_of_the_page():
    far = figures.lines([2**-20, 2**20], {"a": [1, 3]}, **LABELS, alt=ALT, xscale="log2")
    assert {"2⁻¹⁶", "2⁻⁸", "1", "256", "2¹⁶"} <= set(texts(layouts(far)[0]))
    large = figures.lines([0, 1], {"a": [-4e6, 4e6]}, **LABELS, alt=ALT)
    assert {"−4,000,000", "0", "4,000,000"} <= set(texts(layouts(large)[0]))
    decade = figures.lines([0, 1], {"a": [20, 80]}, **LABELS, alt=ALT, yscale="log10")
    assert {"20", "50", "80"} <= set(texts(layouts(decade)[0]))
    assert "$HOME" in texts(layouts(KINDS["sketch"](ALT))[0])


def test_histogram_counts_every_value():
    for xscale in ("linear", "log2", "log10"):
        edges = figures._bin_edges({"a": np.array([0.1, 0.3, 0.7, 1.3])}, 7, xscale)
        assert np.histogram([0.1, 0.3, 0.7, 1.3], edges)[0].sum() == 4


def test_bit_layout_counts_cells():
    shown = texts(layouts(KINDS["bit_layout"](ALT))[0])
    assert "E4M3 · 8 bits" in shown
    assert shown.count("1") == 4
    assert shown.count("M") == 3


@kinds
def test_png_is_an_image_for_white_paper(make):
    pixels = matplotlib.image.imread(io.BytesIO(make(ALT).png), format="png")
    assert pixels.shape[1] == 1024
    for corner in (pixels[0, 0], pixels[0, -1], pixels[-1, 0], pixels[-1, -1]):
        assert corner.tolist() == [1, 1, 1, 1]
    assert (pixels[..., 3] == 1).all()
    assert pixels[..., :3].min() < 0.5


# --- in a browser ---

PAGE = """<!doctype html><html data-theme="{theme}"><meta name="viewport" content="width=device-width">
<link rel="stylesheet" href="{theme_css}"><link rel="stylesheet" href="{book_css}"><link rel="stylesheet" href="{css}">
<body style="margin: 0; background: var(--pst-color-background); color: var(--pst-color-text-base)">
<article class="bd-content" style="margin: 24px; display: block"><div class="cell_output"><div class="output text_html">
{figure}</div></div></article></html>"""

MEASURE = """() => {
  const box = document.querySelector('.themed-figure'), ink = getComputedStyle(document.body).color;
  const shown = [...box.children].filter(svg => getComputedStyle(svg).display !== 'none');
  const svg = shown[0], frame = svg.getBoundingClientRect(), scale = frame.width / svg.viewBox.baseVal.width;
  const all = [...svg.querySelectorAll('text')];
  return {
    shown: shown.map(s => s.getAttribute('class')),
    ink: all.every(t => getComputedStyle(t).fill === ink),
    font: all.every(t => getComputedStyle(t).fontFamily === getComputedStyle(document.body).fontFamily),
    smallest: Math.min(...all.map(t => parseFloat(getComputedStyle(t).fontSize) * scale)),
    outside: all.filter(t => { const r = t.getBoundingClientRect();
      return r.left < frame.left - 1 || r.right > frame.right + 1 ||
        r.top < frame.top - 1 || r.bottom > frame.bottom + 1;
    }).map(t => t.textContent),
    panel: getComputedStyle(document.querySelector('.text_html')).backgroundColor,
    sideways: document.documentElement.scrollWidth - innerWidth,
    series: getComputedStyle(box).getPropertyValue('--fig-blue').trim(),
  };
}"""


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or pytest.skip("no Chromium")
    flags = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    with playwright.sync_playwright() as play:
        window = play.chromium.launch(executable_path=chromium, args=flags.split())
        yield window
        window.close()


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_kind_reads_well_in_a_page(browser, tmp_path, theme):
    styles = {}
    for key, package in (("theme_css", "pydata_sphinx_theme"), ("book_css", "sphinx_book_theme")):
        module = pytest.importorskip(package)
        pattern = f"**/static/styles/{package.replace('_', '-')}.css"
        styles[key] = next(Path(module.__file__).parent.glob(pattern)).as_uri()
    styles["css"] = (ROOT / "_static" / "figures.css").as_uri()
    page = browser.new_page()
    for name, make in KINDS.items():
        file = tmp_path / "page.html"
        file.write_text(PAGE.format(theme=theme, figure=make(ALT)._repr_mimebundle_()["text/html"], **styles))
        for width, layout in ((1280, "wide"), (360, "narrow")):
            page.set_viewport_size({"width": width, "height": 800})
            page.goto(file.as_uri())
            seen = page.evaluate(MEASURE)
            where = (name, width)
            assert seen["shown"] == [layout], where
            assert seen["ink"], where
            assert seen["font"], where
            assert seen["smallest"] >= 9, where
            assert seen["outside"] == [], where
            assert seen["panel"] == "rgba(0, 0, 0, 0)", where
            assert seen["sideways"] <= 0, where
            assert seen["series"] == ("#56b4e9" if theme == "dark" else ""), where
        page.emulate_media(media="print")
        assert page.evaluate(MEASURE)["shown"] == ["wide"], name
        assert page.evaluate("getComputedStyle(document.querySelector('.themed-figure')).color") == "rgb(34, 40, 50)"
        page.emulate_media(media="screen")
    page.close()
