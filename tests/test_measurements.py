"""What a page shows of compiled and measured experiments, in every state that it can be in.

The recordings and the GPU here are made up and live in temporary folders; no number of them is shown anywhere.
"""

import dataclasses
import re

import pytest
import torch
from chipmath import bench, measurements, recordings
from chipmath.crosscompile import CompileError, CompilerMissing
from chipmath.experiments import EXPERIMENTS, ExperimentError
from chipmath.gpu import Gpu
from chipmath.measurements import compiled, measure
from chipmath.recordings import newest
from conftest import ROOT
from test_recordings import recording

CARD = Gpu("A Card 80GB", "NVIDIA", "sm_90", 80 << 30, "580.1", "CUDA 13.0")
RESIDENCY = EXPERIMENTS["residency"]
KEYS = {"threads": 64, "live": 4, "dynamic_shared_bytes": 0}
VALUES = {"registers": 20, "accumulators": None, "scalars": None, "limiters": "waves"}
COUNTS = ("model_groups", "driver_groups", "counted_groups_least", "counted_groups_most")


def row(groups: int) -> dict:
    return KEYS | VALUES | dict.fromkeys(COUNTS, groups)


def residency(groups: int = 32, **changes):
    table = RESIDENCY.table([row(groups)])
    fields = {"experiment": "residency", "code": RESIDENCY.code(), "columns": RESIDENCY.columns, "rows": table}
    return recording(**(fields | changes))


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A folder of recordings with the committed compiled ones, no GPU, and a function that adds to it."""
    for path in recordings.RECORDED.glob("compiled-*.json"):
        (tmp_path / path.name).write_text(path.read_text())
    monkeypatch.setattr(recordings, "RECORDED", tmp_path)
    monkeypatch.setattr(measurements, "gpu", lambda: None)

    def add(*takes):
        for take in takes:
            (tmp_path / take.file_name).write_text(take.to_json())

    return add


@pytest.fixture
def live(monkeypatch):
    """A GPU whose residency counts 31 groups, or does what it is told instead."""
    monkeypatch.setattr(measurements, "gpu", lambda: CARD)
    monkeypatch.setattr("chipmath.experiments.experiment.gpu", lambda: CARD)
    monkeypatch.setattr("chipmath.experiments.experiment.clock_hz", lambda gpu: None)
    monkeypatch.setattr(bench, "find_source", lambda commit=None: bench.Source("e" * 40, True, True))

    def does(measure):
        monkeypatch.setitem(EXPERIMENTS, "residency", dataclasses.replace(RESIDENCY, measure=measure))

    does(lambda gpu, quick, progress: ({}, [row(31)]))
    return does


def shown(result) -> tuple[str, str]:
    data, _ = result._repr_mimebundle_()
    return data["text/plain"], data["text/html"]


# Measured


def test_never_measured_shows_a_labelled_prediction_and_the_command(shelf):
    text, html = shown(measure("residency"))
    assert text.startswith("Prediction, not a measurement: groups per unit that the model admits")
    assert "has not been measured yet (no GPU here that torch can use)" in text
    assert "On your GPU: PYTHONPATH=kernels python -m chipmath.bench residency" in text
    assert "evidence-measured" not in html
    assert "evidence-computed" in html
    assert 'data-recording="compiled-residency_launches.json"' in html


def test_the_prediction_is_the_models():
    predicted = {(r["arch"], r["threads"], r["live"], r["dynamic_shared_bytes"]): r for r in RESIDENCY.predict()}
    assert predicted["sm_90", 64, 4, 0]["groups_per_unit"] == 32
    assert predicted["gfx950", 128, 4, 32000]["groups_per_unit"] == 5  # 25 LDS blocks of 1280 bytes each
    assert predicted["gfx942", 256, 150, 0]["groups_per_unit"] == 512 // 160


def test_bandwidth_is_predicted_as_a_ceiling_only(shelf):
    text, html = shown(measure("copy_bandwidth"))
    assert text.startswith("Prediction, not a measurement: the most that the data sheet admits.")
    assert re.search(r"^NVIDIA H100 SXM5 80GB +3\.35 +641$", text, re.MULTILINE)  # 2 GiB at 3.35 TB/s
    assert "evidence-measured" not in html


def test_recorded_only(shelf):
    shelf(residency())
    text, html = shown(measure("residency"))
    assert "As recorded: no GPU here that torch can use." in text
    assert "recorded 2026-11-20, A Card 80GB" in text
    assert 'data-recording="2026-11-20T1402-a-card-80gb-residency.json"' in html
    assert ">measured, recorded</span>" in html
    assert "data-live" not in html


def test_recorded_with_older_code_says_so_with_its_commit(shelf):
    shelf(residency(code="a" * 64))
    _, html = shown(measure("residency"))
    assert ">measured, recorded, older code</span>" in html
    assert 'data-tip="recorded: the experiment&#x27;s code has changed since.' in html
    assert "commit bbbbbbb" in html


def test_live_beside_recorded(shelf, live, capsys):
    shelf(residency())
    text, html = shown(measure("residency"))
    most = f"{RESIDENCY.live_seconds} s at most"
    assert capsys.readouterr().out == f"residency: measuring on A Card 80GB, quick form, {most}\n"
    assert "Live on this GPU (quick form) beside what was recorded." in text
    lines = [line.split() for line in text.splitlines()[3:]]
    assert [line[4:8] for line in lines] == [["32"] * 4, ["31"] * 4]
    assert [line[8] for line in lines] == ["recorded", "live,"]
    assert ">measured, recorded</span>" in html
    assert ">measured, live</span>" in html
    assert 'data-live="residency"' in html
    assert "live: A Card 80GB (sm_90), driver 580.1" in html
    assert "commit eeeeeee with uncommitted changes" in html


def test_live_only(shelf, live):
    text, html = shown(measure("residency"))
    assert "Live on this GPU (quick form); to record it: PYTHONPATH=kernels python -m chipmath.bench residency" in text
    assert "data-recording" not in html


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("error", [ExperimentError, CompilerMissing])
def test_a_live_run_that_fails_is_told(shelf, live, recorded, error):
    def fails(gpu, quick, progress):
        raise error("counts do not add up")

    live(fails)
    if recorded:
        shelf(residency())
    text, html = shown(measure("residency"))
    assert "not measured on A Card 80GB: counts do not add up" in text
    assert text.startswith("Prediction, not a measurement") != recorded
    assert "data-live" not in html


def test_a_live_run_out_of_memory_is_told(shelf, live):
    def allocates(gpu, quick, progress):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore advice")

    live(allocates)
    text, html = shown(measure("residency"))
    assert "residency needs more memory than this GPU has free: CUDA out of memory. Tried to allocate 2.00 GiB." in text
    assert "More advice" not in text
    assert "data-live" not in html


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyError, RuntimeError, KeyboardInterrupt])
def test_a_defect_of_a_live_run_fails_the_page(shelf, live, error):
    """Only what an experiment itself reports is told as a reason; a bug or an interrupt is never one."""

    def breaks(gpu, quick, progress):
        raise error("a bug")

    live(breaks)
    with pytest.raises(error, match="a bug"):
        measure("residency")


def test_a_live_run_ends_where_a_page_would_wait_too_long(shelf, live, monkeypatch):
    def slow(gpu, quick, progress):
        progress(0, 2, "the first")
        monkeypatch.setattr(measurements.time, "monotonic", lambda: 1e9)
        progress(1, 2, "the second")

    live(slow)
    text, _ = shown(measure("residency"))
    assert f"not measured on A Card 80GB: more than {RESIDENCY.live_seconds} s before the second; what" in text

    def late(gpu, quick, progress):
        monkeypatch.setattr(measurements.time, "monotonic", lambda: 2e9)
        progress(2, 2, "done")
        return {}, [row(31)]

    live(late)
    assert "Live on this GPU" in shown(measure("residency"))[0], "what is done by then is not thrown away"


def test_no_page_waits_longer_than_promised():
    """20 seconds a cell and two minutes for the book (DESIGN, "Evidence"), if every run takes all that it may."""
    pages = (ROOT / "chapters").glob("*.md")
    cells = [name for page in pages for name in re.findall(r'\bmeasure\("(\w+)"\)', page.read_text(encoding="utf-8"))]
    seconds = {e.name: e.live_seconds for e in EXPERIMENTS.values() if e.kind == "measured"}
    assert set(cells) == set(seconds), "every measured experiment has its place in a page"
    assert max(seconds.values()) <= 20
    assert sum(seconds[name] for name in cells) <= 120


def test_every_device_shows_its_newest_recording(shelf):
    other = {"name": "Another Card", "arch": "gfx950", "clock_hz_before": None, "clock_hz_after": None}
    shelf(
        residency(),
        residency(30, taken="2026-11-21T00:00:00Z"),
        residency(8, device=other, taken="2026-11-01T00:00:00Z"),
    )
    result = measure("residency")
    assert [(r.device["name"], r.taken[:10]) for r in result.recorded] == [
        ("Another Card", "2026-11-01"),
        ("A Card 80GB", "2026-11-21"),
    ]
    text, html = shown(result)
    assert html.count("data-recording=") == 2
    assert "recorded 2026-11-20" not in text


@pytest.mark.parametrize(
    ("call", "name", "message"),
    [
        (measure, "mx_tiles", "no measured experiment 'mx_tiles'; there are copy_bandwidth, quantizers, "),
        (compiled, "residency", "no compiled experiment 'residency'; there are mx_tiles, matrix_chains"),
    ],
)
def test_names_are_checked(call, name, message):
    with pytest.raises(ValueError, match=message):
        call(name)


# Compiled


@pytest.fixture
def chains(shelf, monkeypatch):
    """matrix_chains as recorded, whose compiler here is a function of the recorded cells."""
    taken = newest("matrix_chains")
    keys = EXPERIMENTS["matrix_chains"].keys

    def replace(compile_case):
        def case(**given):
            cells = taken.find(**given)
            return compile_case({name: cells[name] for name in cells if name not in keys})

        replaced = dataclasses.replace(EXPERIMENTS["matrix_chains"], compile_case=case)
        monkeypatch.setitem(EXPERIMENTS, "matrix_chains", replaced)
        return compiled("matrix_chains")

    return replace


def test_the_same_compiler_says_the_same(chains):
    text, html = shown(chains(dict))
    assert text.splitlines()[0].endswith("A few of the 160 recorded rows, compiled again:")
    assert "gfx950, mfma_scale 16x16x128, chains 8  this machine, clang 22" in text
    assert all(line.endswith(": same") for line in text.splitlines()[3:])
    assert 'data-recording="compiled-matrix_chains.json"' in html


def test_another_compiler_is_told_with_what_differs(chains):
    text, _ = shown(chains(lambda row: row | {"compiler": "Triton 3.6.0, LLVM x", "registers": 1, "spills": 7}))
    assert "this machine, Triton 3.6.0: differs: registers 106 → 1, spills 0 → 7" in text


def test_what_no_longer_compiles_is_told(chains):
    def refuses(row):
        raise CompileError("chains.hip:3: no such builtin")

    assert "differs: chains.hip:3: no such builtin" in shown(chains(refuses))[0]


def test_a_missing_compiler_is_told(chains):
    def missing(row):
        raise CompilerMissing("no clang for gfx950: looked for clang-22, clang")

    text, html = shown(chains(missing))
    assert text.count("not compiled again: no clang for gfx950\n") == 2
    assert "looked for" not in text
    assert 'data-recording="compiled-matrix_chains.json"' in html


def test_a_recording_of_other_columns_is_not_compared(shelf, monkeypatch):
    experiment = EXPERIMENTS["matrix_chains"]
    values = experiment.values | {"new_column": "something the recording does not have"}
    monkeypatch.setitem(EXPERIMENTS, "matrix_chains", dataclasses.replace(experiment, values=values))
    assert "not compared: the recording is of other cases or columns" in shown(compiled("matrix_chains"))[0]


def test_compiled_values_and_tables(shelf):
    chains = compiled("matrix_chains")
    keys = {"instruction": "mfma_scale 16x16x128"}
    assert str(chains.value("registers", "d", chains=8, **keys)) == "106"
    text, html = shown(chains.table({"chains": "chains", "registers": "VGPRs"}, ["d", "d"], "A caption", **keys))
    assert text.splitlines()[:4] == ["A caption", "chains  VGPRs", "------  -----", "     1     22"]
    assert html.count("<tr>") == 33
    assert ">compiled</span>" in html
    with pytest.raises(LookupError, match="matrix_chains has no row with chains 99"):
        chains.table({"chains": "chains"}, chains=99)
    with pytest.raises(LookupError, match="matrix_chains has no column vgprs"):
        chains.table({"vgprs": "VGPRs"}, chains=8)
    with pytest.raises(LookupError, match="has no column 'vgprs'"):
        chains.value("vgprs", chains=8, **keys)


PAGE = """
```{code-cell} ipython3
import sys
HIDE
from chipmath.measurements import compiled, measure
tiles = compiled("mx_tiles")
glue("tile", tiles.value("registers", "d", arch="gfx950", tile_m=64, tile_n=64, num_warps=8), display=False)
tiles
```

```{code-cell} ipython3
measure("residency")
```

A tile takes {evidence}`tile` registers.
"""


@pytest.mark.parametrize(
    ("hide", "verdict"), [("", "this machine, Triton "), ('sys.modules["triton"] = None', "no Triton")]
)
def test_a_page_with_and_without_triton(toy_book, hide, verdict):
    if not hide:
        pytest.importorskip("triton")
    toy_book.add(PAGE.replace("HIDE", hide))
    status, output = toy_book.build()
    assert status == 0, output[-3000:]
    html = toy_book.html()
    assert verdict in html
    assert f">{newest('mx_tiles').cell('registers', arch='gfx950', tile_m=64, tile_n=64, num_warps=8)}<span" in html
    assert html.count('data-recording="compiled-mx_tiles.json"') == 2
    assert "has not been measured yet" in html
