"""The recorder: what it refuses, that it writes whole files or none, and every experiment rehearsed without a GPU.

No test here pretends to have measured anything; stand-ins only go through the code.
"""

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from chipmath import bench
from chipmath.crosscompile import CompileError, CompilerMissing
from chipmath.devices import MIB, PRODUCTS
from chipmath.experiments import (
    EXPERIMENTS,
    ExperimentError,
    Run,
    copy_bandwidth,
    here,
    launching,
    quantizers,
    residency,
    timing,
    training,
)
from chipmath.experiments.residency import Counts
from chipmath.experiments.residency_launches import compile_launch, launches
from chipmath.gpu import DriverError, Gpu, driver_occupancy
from chipmath.occupancy import occupancy
from chipmath.recordings import load, newest, recorded
from test_gpu import binary, ctypes_of, header
from test_recordings import recording

KERNELS = Path(__file__).resolve().parent.parent / "kernels"
CARD = Gpu("A Card 80GB", "NVIDIA", "sm_90", 80 << 30, "580.1", "CUDA 13.0")
CLEAN = bench.Source("c" * 40, False, True)


def silent(done, total, text):
    pass


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A checkout's folder of recordings, and no GPU."""
    monkeypatch.setattr(bench, "RECORDED", tmp_path / "recorded")
    monkeypatch.setattr(bench, "find_source", lambda commit=None: CLEAN)
    monkeypatch.setattr(bench, "gpu", lambda: None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stand_in(monkeypatch, experiment: str, run):
    """Let an experiment run ``run(quick, progress)`` instead."""
    replacement = SimpleNamespace(
        **{n: getattr(EXPERIMENTS[experiment], n) for n in ("name", "kind", "code", "columns")}
    )
    replacement.run, replacement.table = run, EXPERIMENTS[experiment].table
    monkeypatch.setitem(EXPERIMENTS, experiment, replacement)


def passes(quick, progress):
    row = dict.fromkeys(EXPERIMENTS["matrix_passes"].columns, "x")
    return Run({"targets": ["gfx950"]}, {"clang": "22.1.8"}, {}, [row])


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# The command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["speed"], f"no experiment speed; there are {', '.join(EXPERIMENTS)}"),
        (["mx_tiles", "speed", "luck"], "no experiment speed, luck; there are"),
        ([], "name an experiment, or --compiled, --measured, --all or --list"),
        (["mx_tiles", "--skip", "mx_tiles"], "--skip mx_tiles leaves nothing to do"),
        (["--measured", "--skip", "speed"], "no experiment speed; there are"),
        (["mx_tiles", "--commit", "HEAD"], "--commit HEAD: not 40 hexadecimal digits"),
    ],
)
def test_wrong_arguments_are_told(folder, capsys, arguments, message):
    with pytest.raises(SystemExit) as status:
        bench.main(arguments)
    assert status.value.code == 2
    assert message in capsys.readouterr().err
    assert files(folder) == []


def test_list_names_every_experiment(capsys):
    assert bench.main(["--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == list(EXPERIMENTS)
    assert all(
        re.search(r"(compiled|measured|computed) +(recorded 20\d\d-\d\d-\d\d|not recorded yet)", line)
        for line in listed
    )


@pytest.mark.parametrize(
    "arguments", [["copy_bandwidth"], ["residency", "--quick"], ["--all"], ["--all", "--out", "x"]]
)
def test_without_a_gpu_nothing_is_measured(folder, monkeypatch, capsys, arguments):
    monkeypatch.setattr(bench, "_record", lambda *a: pytest.fail("something ran"))
    assert bench.main(arguments) == 1
    measured = [experiment.name for experiment in EXPERIMENTS.values() if experiment.kind == "measured"]
    names = arguments[0] if arguments[0] in EXPERIMENTS else ", ".join(measured)
    assert f"no GPU here that torch can use: {names} cannot be measured" in capsys.readouterr().err
    assert files(folder) == []


def test_a_measured_experiment_itself_refuses_without_a_gpu(monkeypatch):
    monkeypatch.setattr("chipmath.experiments.experiment.gpu", lambda: None)
    with pytest.raises(ExperimentError, match="copy_bandwidth is measured on a GPU, and torch sees none here"):
        EXPERIMENTS["copy_bandwidth"].run(True, silent)


def test_one_command_makes_all_compiled_recordings(folder, monkeypatch):
    done = []
    monkeypatch.setattr(bench, "_record", lambda experiment, options, source: done.append(experiment.name) or True)
    assert bench.main(["--compiled"]) == 0
    assert done == [experiment.name for experiment in EXPERIMENTS.values() if experiment.kind == "compiled"]


def test_measured_experiments_have_a_process_each_and_one_that_fails_does_not_stop_the_next(folder, monkeypatch, capfd):
    """The parent believes in a GPU, its children find none: each says so, and nothing is written."""
    monkeypatch.setattr(bench, "gpu", lambda: here.STAND_IN)
    skipped = [e.name for e in EXPERIMENTS.values() if e.kind == "measured" and e.name not in ("residency", "training")]
    skip = [word for name in skipped for word in ("--skip", name)]
    assert bench.main(["--measured", *skip, "--quick", "--out", str(folder / "out")]) == 1
    told = capfd.readouterr().err
    for name in ("residency", "training"):
        assert f"no GPU here that torch can use: {name} cannot be measured; nothing was run" in told
    assert "not recorded: residency, training" in told
    assert files(folder) == []


def test_a_process_of_its_own_gets_every_option(folder, monkeypatch):
    commands = []

    def run(command, **how):
        commands.append((command, how["env"]["PYTHONPATH"].split(os.pathsep)[0]))
        return SimpleNamespace(returncode=len(commands) % 2)

    monkeypatch.setattr(bench, "gpu", lambda: here.STAND_IN)
    monkeypatch.setattr(bench, "run_group", run)
    options = ["--quick", "--out", str(folder / "out"), "--commit", "c" * 40]
    assert bench.main(["residency", "training", *options]) == 1
    assert commands == [
        ([sys.executable, "-m", "chipmath.bench", name, *options], str(KERNELS)) for name in ("residency", "training")
    ]


def test_one_that_hangs_is_ended_and_the_next_has_its_turn(folder, monkeypatch, capfd):
    """Python alone takes longer to start than it is given here."""
    monkeypatch.setattr(bench, "gpu", lambda: here.STAND_IN)
    hanging = dataclasses.replace(EXPERIMENTS["residency"], longest_seconds=0.01)
    monkeypatch.setitem(EXPERIMENTS, "residency", hanging)
    assert bench.main(["residency", "training", "--quick", "--out", str(folder / "out")]) == 1
    told = capfd.readouterr().err
    assert "residency: ended after 0.01 s" in told
    assert "no GPU here that torch can use: training cannot be measured" in told
    assert "not recorded: residency, training" in told


def test_every_measured_experiment_has_an_end_and_others_none():
    for experiment in EXPERIMENTS.values():
        assert (experiment.longest_seconds is not None) == (experiment.kind == "measured")
    assert EXPERIMENTS["training"].longest_seconds > training.DEADLINE_SECONDS


def test_a_log_has_few_lines_of_progress(monkeypatch, capsys):
    clock = iter(range(100))
    monkeypatch.setattr(bench.time, "monotonic", lambda: next(clock))
    progress = bench._Progress("residency")
    for done in range(61):
        progress(done, 60, "threads")
    lines = capsys.readouterr().err.splitlines()
    assert 4 <= len(lines) <= 6, lines
    assert lines[0].startswith("  residency: 0/60")
    assert lines[-1].startswith("  residency: 60/60")


# Recording


def test_a_run_becomes_a_recording(folder, monkeypatch, capsys):
    stand_in(monkeypatch, "matrix_passes", passes)
    assert bench.main(["matrix_passes"]) == 0
    taken = load(folder / "recorded/compiled-matrix_passes.json")
    assert (taken.commit, taken.dirty, taken.method) == ("c" * 40, False, {"form": "full"})
    assert "matrix_passes: 1 rows, clang 22.1.8 for gfx950" in capsys.readouterr().out


@pytest.mark.parametrize("error", [ExperimentError, CompilerMissing, CompileError, DriverError])
def test_a_failed_experiment_writes_nothing_and_the_others_go_on(folder, monkeypatch, capsys, error):
    def fails(quick, progress):
        raise error("copy is wrong in 3 of 9 words")

    stand_in(monkeypatch, "mx_tiles", fails)
    stand_in(monkeypatch, "matrix_passes", passes)
    assert bench.main(["mx_tiles", "matrix_passes"]) == 1
    told = capsys.readouterr().err
    assert "mx_tiles: copy is wrong in 3 of 9 words" in told
    assert "not recorded: mx_tiles" in told
    assert files(folder) == ["recorded/compiled-matrix_passes.json"]


@pytest.mark.parametrize("blocked", ["file", "read-only"])
def test_an_unwritable_place_is_told_before_anything_runs(folder, monkeypatch, capsys, blocked):
    stand_in(monkeypatch, "matrix_passes", lambda *a: pytest.fail("something ran"))
    (folder / "file").write_text("not a folder")
    if blocked == "read-only":  # to root nothing is: so the operating system's answer is made up

        def refuse(dir):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(bench.tempfile, "TemporaryFile", refuse)
    with pytest.raises(SystemExit) as status:
        bench.main(["matrix_passes", "--out", str(folder / blocked)])
    assert status.value.code == 2
    assert re.search(rf"cannot write to \S*{blocked}: (File exists|Permission denied)", capsys.readouterr().err)
    assert files(folder) == ["file"]


def test_an_interrupted_experiment_writes_nothing(folder, monkeypatch, capsys):
    def interrupted(quick, progress):
        raise KeyboardInterrupt

    stand_in(monkeypatch, "matrix_passes", interrupted)
    assert bench.main(["matrix_passes"]) == 130
    assert "left nothing behind" in capsys.readouterr().err
    assert files(folder) == []


@pytest.mark.parametrize("moment", ["os.fsync", "os.replace"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_write_leaves_the_old_file_whole(folder, monkeypatch, moment, error):
    old, new = recording(), recording(rows=[["copy", 1.0]])
    path = bench.write(old, folder)

    def interrupt(*arguments):
        raise error

    monkeypatch.setattr(moment, interrupt)
    with pytest.raises(error):
        bench.write(new, folder)
    assert files(folder) == [path.name]
    assert load(path) == old


def test_a_file_appears_under_its_name_only_when_it_is_whole(folder, monkeypatch):
    """Seen from outside while it is written: what a killed process would leave is no recording."""
    seen, fsync = [], os.fsync
    monkeypatch.setattr("chipmath.recordings.RECORDED", folder)
    monkeypatch.setattr(os, "fsync", lambda descriptor: seen.append((recorded(), files(folder))) or fsync(descriptor))
    path = bench.write(recording(), folder)
    ((found, names),) = seen
    assert found == []
    assert names == [f".{path.name}.partial"]
    assert recorded() == [recording()]


def test_a_rehearsal_cannot_be_written(folder):
    device = recording().device | {"arch": "cpu"}
    with pytest.raises(ValueError, match="a rehearsal on a CPU is no measurement"):
        bench.write(recording(device=device), folder)
    assert files(folder) == []


@pytest.mark.parametrize(
    ("software", "out", "status"),
    [
        ({"clang": "22.1.8"}, None, 0),
        ({"Triton": "3.9.0"}, None, 0),
        ({"nvcc": "13.0.88", "clang": "22.1.8"}, None, 0),
        ({"Triton": "3.6.0"}, None, 1),
        ({"Triton": "3.9.01"}, None, 1),
        ({"clang": "21.1.0"}, None, 1),
        ({"NVRTC": "13.0"}, None, 1),
        ({"LLVM": "24.0.0git"}, None, 1),
        ({"LLVM": "23.0.0git", "TVM": "0.1.0a4", "Triton": "3.9.0"}, None, 0),
        ({"Triton": "3.6.0"}, "elsewhere", 0),
    ],
)
def test_only_pinned_compilers_make_the_books_recordings(folder, monkeypatch, capsys, software, out, status):
    stand_in(monkeypatch, "matrix_passes", lambda *a: dataclasses.replace(passes(*a), software=software))
    assert bench.main(["matrix_passes", *(["--out", out] if out else [])]) == status
    if status:
        message = capsys.readouterr().err
        assert "and the recordings are of Triton 3.9.0, clang 22, nvcc 13, " in message
        assert ": use --out DIR" in message
    assert files(folder) == ([] if status else [f"{out or 'recorded'}/compiled-matrix_passes.json"])


def test_quick_forms_stay_out_of_the_books_recordings(folder, monkeypatch):
    stand_in(monkeypatch, "matrix_passes", passes)
    assert bench.main(["matrix_passes", "--quick"]) == 0
    (name,) = files(folder)
    assert re.fullmatch(r"recorded-20\d\d-\d\d-\d\d/compiled-matrix_passes-quick\.json", name)
    assert load(folder / name).method["form"] == "quick"


def test_a_quick_form_replaces_no_full_one(folder, monkeypatch):
    stand_in(monkeypatch, "matrix_passes", passes)
    assert [bench.main(["matrix_passes", *form, "--out", "x"]) for form in ([], ["--quick"])] == [0, 0]
    forms = {name: load(folder / name).method["form"] for name in files(folder)}
    assert forms == {"x/compiled-matrix_passes.json": "full", "x/compiled-matrix_passes-quick.json": "quick"}


@pytest.mark.parametrize(
    ("commit", "advice"), [("unknown", "run again with --commit"), ("d" * 40, "open a pull request that adds the file")]
)
def test_outside_a_checkout_it_tells_how_to_contribute(folder, monkeypatch, capsys, commit, advice):
    stand_in(monkeypatch, "matrix_passes", passes)
    monkeypatch.setattr(bench, "find_source", lambda given: bench.Source(commit, False, False))
    assert bench.main(["matrix_passes"]) == 0
    assert advice in capsys.readouterr().out
    (name,) = files(folder)
    assert name.startswith("recorded-20")


# Which code ran


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository of the book's shape with one commit."""

    def git(*arguments):
        identity = {
            "GIT_AUTHOR_NAME": "a",
            "GIT_AUTHOR_EMAIL": "a",
            "GIT_COMMITTER_NAME": "a",
            "GIT_COMMITTER_EMAIL": "a",
        }
        command = ["git", "-C", str(tmp_path), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | identity).stdout

    package = tmp_path / "kernels/chipmath"
    (package / "recorded").mkdir(parents=True)
    (package / "bench.py").write_text("1")
    (package / "recorded/x.json").write_text("1")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "x")
    monkeypatch.setattr(bench, "PACKAGE", package)
    monkeypatch.setattr(bench, "RECORDED", package / "recorded")
    return SimpleNamespace(root=tmp_path, package=package, head=git("rev-parse", "HEAD").strip())


def test_a_clean_checkout(checkout):
    assert bench.find_source() == bench.Source(checkout.head, False, True)
    assert bench.find_source(checkout.head) == bench.Source(checkout.head, False, True)


def test_new_recordings_do_not_make_a_checkout_dirty(checkout):
    (checkout.package / "recorded/x.json").write_text("2")
    (checkout.package / "recorded/y.json").write_text("2")
    assert not bench.find_source().dirty


@pytest.mark.parametrize("name", ["kernels/chipmath/bench.py", "notes.txt"])
def test_any_other_change_does(checkout, name):
    (checkout.root / name).write_text("2")
    assert bench.find_source() == bench.Source(checkout.head, True, True)


def test_a_claimed_commit_that_is_not_the_checkouts_is_refused(checkout, capsys):
    with pytest.raises(SystemExit) as status:
        bench.main(["matrix_passes", "--commit", "d" * 40])
    assert status.value.code == 2
    assert f"--commit {'d' * 40}: this checkout is at {checkout.head}" in capsys.readouterr().err


def test_inside_another_repository_is_outside_a_checkout(checkout, monkeypatch):
    package = checkout.root / ".venv/lib/site-packages/chipmath"
    package.mkdir(parents=True)
    monkeypatch.setattr(bench, "PACKAGE", package)
    assert bench.find_source() == bench.Source("unknown", False, False)
    assert bench.find_source("d" * 40) == bench.Source("d" * 40, False, False)


def test_without_git_too(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert bench.find_source() == bench.Source("unknown", False, False)


# Rehearsals


@pytest.fixture(scope="module")
def rehearsals(tmp_path_factory):
    """All of them in one call from outside, as a reader would: the finished call, its folder, and what was recorded."""
    before, empty = files(bench.RECORDED), tmp_path_factory.mktemp("empty")
    command = [sys.executable, "-m", "chipmath.bench", "--all", "--dry-run", "--out", str(empty)]
    environment = os.environ | {"PYTHONPATH": str(KERNELS)}
    done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, check=False)
    return done, empty, before


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_rehearsed(rehearsals, name):
    done, *_ = rehearsals
    if missing := re.search(rf"^{name}: .*no (Triton|clang|CUDA compiler|nvcc|nvdisasm).*", done.stderr, re.MULTILINE):
        pytest.skip(f"not rehearsed: {missing[0]}")
    assert re.search(rf"^{name}: rehearsed \d+ rows; not written", done.stdout, re.MULTILINE), done.stderr
    assert not re.search(rf"^not rehearsed: .*\b{name}\b", done.stderr, re.MULTILINE)


def test_a_rehearsal_writes_nothing_and_its_status_says_whether_all_went_well(rehearsals):
    done, empty, before = rehearsals
    assert done.returncode == ("not rehearsed: " in done.stderr)
    assert files(empty) == []
    assert files(bench.RECORDED) == before


# Timing


def test_every_round_times_every_candidate_once_and_none_has_always_the_same_neighbour():
    order = []
    candidates = {name: (lambda i, name=name: order.append(name)) for name in "abc"}

    def stopwatch(candidate, calls):
        candidate(0)
        return 1e-3

    seconds = timing.take_turns(candidates, stopwatch, rounds=20)
    assert seconds == {name: [1e-3] * 20 for name in "abc"}
    rounds = [order[-60:][at : at + 3] for at in range(0, 60, 3)]
    assert all(sorted(turn) == list("abc") for turn in rounds)
    before = Counter(order[at - 1] for at in range(len(order) - 59, len(order)) if order[at] == "a")
    assert min(before["b"], before["c"]) >= 4, before
    order.clear()
    timing.take_turns(candidates, stopwatch, rounds=20)
    assert [order[-60:][at : at + 3] for at in range(0, 60, 3)] == rounds, "the same in every run"


def test_a_batch_is_filled_and_what_compiles_or_warms_up_is_not_timed():
    timed, done = [], []

    def stopwatch(candidate, calls):
        timed.append(calls)
        return 40e-3 if len(timed) <= 2 else 1e-3  # an idle clock at first

    timing.take_turns({"a": done.append}, stopwatch, rounds=2, batch_seconds=8e-3)
    assert done == [0, 1], "compiled and loaded before the clock runs"
    assert timed[-2:] == [8, 8], "as many as the warm clock says"
    assert set(timed[:-2]) == {2}
    assert 2 * (2 * 40e-3 + (len(timed) - 4) * 1e-3) == pytest.approx(timing.WARM_SECONDS, abs=2e-3)


def test_quantiles_are_those_of_the_textbook():
    got = timing.spread([float(i) for i in range(11, -1, -1)])  # 0 … 11
    assert (got.p10, got.p50, got.p90) == pytest.approx((1.1, 5.5, 9.9))


def test_host_stopwatch_counts_calls():
    calls = []
    assert timing.host_stopwatch(calls.append, 5) > 0
    assert calls == [0, 1, 2, 3, 4]


# Copy bandwidth


class Kernel:
    """Stands in for a Triton kernel: launched as kernel[grid](…)."""

    def __init__(self, run):
        self.run = run

    def __getitem__(self, grid):
        return self.run


def streams(monkeypatch, copy, read):
    monkeypatch.setitem(
        sys.modules, "chipmath.experiments.streams", SimpleNamespace(copy_stream=Kernel(copy), read_stream=Kernel(read))
    )


def copies(source, target, **options):
    target.copy_(source)


def reads(source, parities, BLOCK, num_warps):
    parities.copy_(copy_bandwidth._parity(source.view(-1, BLOCK)))


def flips_a_bit(source, target, **options):
    target.copy_(source)
    target[7] ^= 1


@pytest.mark.parametrize(
    ("copy", "read", "message"),
    [
        (flips_a_bit, reads, "triton copy is wrong in 1 of 16384 words: it is not timed"),
        (lambda *a, **k: None, reads, "triton copy is wrong in 16384 of 16384 words"),
        (copies, lambda *a, **k: None, "triton read is wrong in 4 of 4 words"),
    ],
)
def test_a_wrong_kernel_is_never_timed(monkeypatch, copy, read, message):
    streams(monkeypatch, copy, read)
    monkeypatch.setattr(copy_bandwidth, "take_turns", lambda *a, **k: pytest.fail("a wrong kernel was timed"))
    with pytest.raises(ExperimentError, match=message):
        copy_bandwidth.rehearse(silent)


@pytest.mark.parametrize(("idle", "words"), [("copy", 16384), ("read", 4)])
def test_memory_that_holds_the_right_words_already_helps_no_kernel(monkeypatch, idle, words):
    """Targets are poisoned: allocators hand out what was freed, with what an earlier copy left in it."""
    torch = pytest.importorskip("torch")
    right = []
    streams(monkeypatch, copies, lambda source, parities, **k: right.append(parities) or reads(source, parities, **k))
    copy_bandwidth._candidates("cpu", 64 * 1024, 2)
    left = iter([parities.clone() for parities in right])
    nothing = {"copy": (lambda *a, **k: None, reads), "read": (copies, lambda *a, **k: None)}
    streams(monkeypatch, *nothing[idle])
    monkeypatch.setattr(torch, "empty_like", torch.clone)
    monkeypatch.setattr(torch, "empty", lambda *a, **k: next(left))
    with pytest.raises(ExperimentError, match=f"triton {idle} is wrong in {words} of {words} words"):
        copy_bandwidth._candidates("cpu", 64 * 1024, 2)


def test_every_buffer_is_checked(monkeypatch):
    sources = []

    def wrong_on_the_second(source, target, **options):
        sources.append(source.data_ptr())
        target.copy_(source)
        target[-1] ^= len(set(sources)) == 2

    streams(monkeypatch, wrong_on_the_second, reads)
    with pytest.raises(ExperimentError, match="triton copy is wrong in 1 of 16384 words"):
        copy_bandwidth._candidates("cpu", 64 * 1024, 2)


def test_bandwidth_is_bytes_over_time(monkeypatch):
    """A clock that gives each candidate its time: 2, 1 and 4 seconds for 128, 128 and about 64 KiB."""
    streams(monkeypatch, copies, reads)
    seconds = {"triton copy": [2.0] * 3, "torch copy_": [1.0] * 3, "triton read": [4.0] * 3}
    monkeypatch.setattr(copy_bandwidth, "take_turns", lambda *a, **k: seconds)
    _, rows = copy_bandwidth.rehearse(silent)
    by_name = {row["kernel"]: row for row in rows}
    assert by_name["torch copy_"]["bytes_per_s_p50"] == 2 * 64 * 1024
    assert by_name["torch copy_"]["ratio_to_reference_p50"] == 1
    assert by_name["triton copy"]["ratio_to_reference_p90"] == 0.5
    read = by_name["triton read"]
    assert read["bytes_moved"] == 64 * 1024 + 4 * 4, "a word for each of four blocks of 16 KiB"
    assert read["ratio_to_reference_p10"] == pytest.approx(read["bytes_moved"] / 4 / (128 * 1024))
    assert read["fraction_of_datasheet"] == pytest.approx(read["bytes_moved"] / 4 / 8.0e12)
    assert all(set(row) == set(copy_bandwidth.EXPERIMENT.columns) for row in rows)


def test_ratios_of_the_quantizers_by_hand():
    """32 x 64 bfloat16: 4096 bytes in, 2112 of elements and scales out; times of 1 s, 2 s, 4 s and 8 s."""
    seconds = {"rows": [1.0] * 3, "both": [2.0] * 3, quantizers.TWO_PASSES: [4.0] * 3, quantizers.COPY: [8.0] * 3}
    rows = {name: quantizers._row(name, (32, 64), "bfloat16", 0, None, seconds) for name in seconds}
    moved = {"rows": 6208, "both": 8320, quantizers.TWO_PASSES: 12416, quantizers.COPY: 8192}
    assert {name: row["bytes_moved"] for name, row in rows.items()} == moved
    assert quantizers.bytes_moved("columns", (32, 64), "float32") == 8192 + 2112
    assert rows["both"]["bytes_per_s_p50"] == 4160
    assert rows["both"]["ratio_to_copy_p10"] == 4160 / 1024
    assert rows["both"]["time_over_two_passes_p90"] == 0.5
    assert rows["rows"]["time_over_two_passes_p50"] is None
    untimed = quantizers._row("a peer", (32, 64), "bfloat16", 3, "wrong", seconds)
    assert (untimed["bytes_per_s_p50"], untimed["ratio_to_copy_p50"], untimed["wrong_bytes"]) == (None, None, 3)


def test_buffers_rotate(monkeypatch):
    """Between two uses of a buffer lie all others, and inputs are no zeros."""
    torch = pytest.importorskip("torch")
    seen = []
    streams(monkeypatch, lambda source, target, **k: seen.append(source) or target.copy_(source), reads)
    candidates, _ = copy_bandwidth._candidates("cpu", 64 * 1024, 4)
    seen.clear()
    for i in range(8):
        candidates["triton copy"](i)
    addresses = [source.data_ptr() for source in seen]
    assert addresses[:4] == addresses[4:]
    assert len(set(addresses)) == 4
    assert all((source == 0).float().mean() < 0.01 for source in seen)
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize(
    ("name", "units", "product"),
    [
        ("NVIDIA H100 80GB HBM3", 132, "H100 SXM"),
        ("NVIDIA H100 80GB HBM3", 66, None),  # a partition
        ("NVIDIA H100 PCIe", 114, None),
        ("AMD Instinct MI300X", 304, "MI300X"),
        ("AMD Instinct MI300X", 38, None),  # one of eight partitions
        ("AMD Instinct MI355X", 256, "MI355X"),
    ],
)
def test_a_data_sheet_is_of_the_whole_card(name, units, product):
    assert copy_bandwidth.datasheet(name, units) is PRODUCTS.get(product)


def test_small_gpus_are_left_alone(monkeypatch):
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace(multi_processor_count=8))
    with pytest.raises(
        ExperimentError, match="copy_bandwidth wants a GPU of more than 4096 MiB, this one has 2048 MiB"
    ):
        copy_bandwidth.measure(dataclasses.replace(CARD, memory_bytes=2048 * MIB), True, silent)


# Residency


@pytest.mark.parametrize("arch", ["sm_90", "sm_120", "gfx942", "gfx950"])
def test_launches_sit_on_the_edges(arch):
    shared = [launch["dynamic_shared_bytes"] for launch in launches(arch) if launch["dynamic_shared_bytes"]]
    assert [occupancy(arch, registers=20, shared_bytes=size, threads=128).groups_per_unit for size in shared] == [
        2,
        1,
        5,
        4,
    ]


TRUSTED = Counts([5, 5, 5, 0], [10, 10, 10, 0], 0)


def test_counts_that_add_up_are_trusted():
    assert residency._trusted(TRUSTED, 3, 30, {}) == [5, 5, 5]


@pytest.mark.parametrize(
    ("counts", "why"),
    [
        (dataclasses.replace(TRUSTED, visits=[10, 10, 9, 0]), "29 of 30 groups seen on 3 of 3 units"),
        (dataclasses.replace(TRUSTED, visits=[10, 10, 9, 1]), "30 of 30 groups seen on 4 of 3 units"),
        (dataclasses.replace(TRUSTED, visits=[15, 15, 0, 0]), "30 of 30 groups seen on 2 of 3 units"),
        (dataclasses.replace(TRUSTED, wrong_sums=1), "1 threads with other values than they were given"),
    ],
)
def test_counts_that_do_not_are_refused(counts, why):
    with pytest.raises(ExperimentError, match=why):
        residency._trusted(counts, 3, 30, {"threads": 64})


def compiled_or_skip(arch, *arguments):
    try:
        return compile_launch(arch, *arguments)
    except CompilerMissing as error:
        pytest.skip(f"not compiled: {error}")


@pytest.mark.parametrize("arch", ["sm_90", "gfx942", "gfx950"])
def test_what_was_counted_is_told_beside_model_and_driver(arch):
    """A driver that promises one more than the model, and a device that holds one fewer on one unit."""
    binary = compiled_or_skip(arch, 256, 56)
    model = binary.occupancy().groups_per_unit
    asked = []

    def count(binary, threads, dynamic_shared_bytes, groups, live):
        asked.append((threads, dynamic_shared_bytes, groups, live))
        return Counts([model, model - 1], [groups - 1, 1], 0)

    case = {"threads": 256, "live": 56, "dynamic_shared_bytes": 0}
    method, (row,) = residency._measure(arch, 2, [case], lambda *a: model + 1, count, silent)
    assert asked == [(256, 0, 2 * 2 * (model + 2), 56)], "more groups than anybody expects to fit at once"
    assert set(row) == set(residency.EXPERIMENT.columns)
    told = [row[f"{who}"] for who in ("model_groups", "driver_groups", "counted_groups_least", "counted_groups_most")]
    assert told == [model, model + 1, model - 1, model]
    assert method["compiler"] == binary.compiler


@pytest.mark.parametrize("arch", ["sm_90", "gfx942", "gfx950"])
def test_the_kernel_counts_before_and_after_it_stays(arch):
    """In the code: arrival, peak and visit are counted, then the clock is read, then the group counts itself out."""
    binary = compiled_or_skip(arch, 256, 100)
    assert binary.registers > 100
    assert binary.spills == 0
    assert binary.threads == 256
    unit = (r"S2R R\d+, SR_VIRTUALSMID",)
    steps = (
        r"ATOMG\.E\.ADD",
        r"(ATOM|RED)G\.E\.MAX",
        r"(ATOM|RED)G\.E\.ADD",
        "SR_GLOBALTIMER",
        "NANOSLEEP",
        r"G\.E\.ADD",
    )
    if arch != "sm_90":
        unit = (r"hwreg\(HW_REG_XCC_ID, 0, 4\)", r"hwreg\(HW_REG_HW_ID, 8, 8\)")
        steps = ("atomic_add .*(glc|sc0)", "atomic_smax", "atomic_add ", "s_memrealtime", "s_sleep", "atomic_add ")
    at = 0
    for pattern in unit + steps:
        found = re.compile(pattern).search(binary.isa, at)
        assert found, (pattern, "after", binary.isa[max(0, at - 80) : at])
        at = found.end()
    fence = "MEMBAR" if arch == "sm_90" else r"s_waitcnt vmcnt\(0\)"
    assert re.compile(fence).search(binary.isa, at), "counted out before the group ends"


@pytest.mark.parametrize("quick", [False, True])
def test_every_launch_is_counted_in_either_form(monkeypatch, quick):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace(multi_processor_count=132))
    monkeypatch.setattr(residency, "_measure", lambda arch, units, cases, *rest: (arch, units, cases))
    counted = residency.measure(CARD, quick, silent)
    assert counted == ("sm_90", 132, launches("sm_90"))
    assert len(counted[2]) >= 12


def test_unknown_chips_are_not_counted():
    with pytest.raises(ExperimentError, match=r"residency knows gfx942, gfx950, sm_80, .*, not gfx90a"):
        residency.measure(dataclasses.replace(CARD, arch="gfx90a"), True, silent)


# Launching


@pytest.mark.parametrize(
    ("vendor", "file", "status", "function"),
    [
        ("nvidia", "cuda.h", "CUresult CUDAAPI", "cuLaunchKernel"),
        ("amd", "hip/hip_runtime_api.h", "hipError_t", "hipModuleLaunchKernel"),
    ],
)
def test_launch_is_declared_as_in_the_vendors_header(vendor, file, status, function, monkeypatch):
    base = ctypes_of.__globals__["BASE"]  # how test_gpu.py reads the headers, and two types more
    for stream in ("CUstream", "hipStream_t"):
        monkeypatch.setitem(base, stream, launching.gpu.HANDLE)
    parameters = re.search(rf"\b{status} {function}\s*\(([^)]*)\)\s*;", header(vendor, file))[1]
    declared = [ctypes_of(" ".join(part.replace("void**", "void **").split())) for part in parameters.split(",")]
    assert declared == launching._LAUNCH


def test_carveout_attribute_is_that_of_the_header():
    text = header("nvidia", "cuda.h")
    found = re.search(r"\bCU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT\s*=\s*(\d+)", text)
    assert int(found[1]) == launching.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT
    found = re.search(r"\bCU_SHAREDMEM_CARVEOUT_MAX_SHARED\s*=\s*(\d+)", text)
    assert int(found[1]) == launching.CARVEOUT_ALL_SHARED


@pytest.fixture(scope="module")
def fake_driver(tmp_path_factory):
    """tests/fake_driver.cpp, compiled."""
    library = tmp_path_factory.mktemp("driver") / "driver.so"
    source = Path(__file__).with_name("fake_driver.cpp")
    try:
        subprocess.run(["g++", "-std=c++17", "-shared", "-fPIC", "-o", library, source], check=True)
    except FileNotFoundError:
        pytest.skip("no g++: how launches reach a driver is untested")
    return launching.ctypes.CDLL(str(library))


@pytest.mark.parametrize("arch", ["sm_90", "gfx950"])
def test_a_launch_reaches_the_driver_as_it_was_meant(monkeypatch, fake_driver, arch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(launching.gpu, "_load", lambda names: fake_driver)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    present, most, visits = torch.zeros(3, 4096, dtype=torch.int32).unbind()
    waits = []  # for the arguments, and for what went wrong in the kernel: how many groups had come by then
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(int(visits.sum())))
    seeds, sums = torch.tensor([3, 4], dtype=torch.int32), torch.full((9 * 64,), -1, dtype=torch.int32)
    arguments = [present, most, visits, seeds, sums, 12345]
    asks = dataclasses.replace(binary(arch), dynamic_shared_bytes=5000)  # as Triton's kernels do, beside the launch
    launching.launch(asks, 9, 64, arguments, dynamic_shared_bytes=65000)
    assert visits[:4].tolist() == [3, 3, 3, 0]
    assert waits == [0, 9]
    assert most[:4].tolist() == [4, 4, 4, 0]
    assert set(sums.tolist()) == {7}
    with pytest.raises(DriverError, match="error 3, fake"):
        launching.launch(binary(arch), 9, 64, [*arguments[:5], 1], dynamic_shared_bytes=70000)
    assert fake_driver.left_behind() == 0, "modules, contexts and another device, after an error too"


@pytest.mark.parametrize("arch", ["sm_90", "gfx950"])
def test_a_question_about_occupancy_reaches_the_driver_as_it_was_meant(monkeypatch, fake_driver, arch):
    """Threads, all dynamic shared memory and the GPU; the answer is made of them."""
    monkeypatch.setattr(launching.gpu, "_load", lambda names: fake_driver)
    asked = dataclasses.replace(binary(arch), dynamic_shared_bytes=5000)
    assert driver_occupancy(asked, dynamic_shared_bytes=65000, index=3) == 3_000_000 + 128 + 70_000
    assert driver_occupancy(asked, 64) == 64 + 5000
    assert fake_driver.left_behind() == 0


# The device that is here


def program(folder: Path, monkeypatch, name: str, output: str) -> None:
    file = folder / name
    file.write_text(f"#!/bin/sh\ncat <<'END'\n{output}\nEND\n")
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("lines", "clock"),
    [
        ("A Card 80GB, 1980", 1.98e9),
        ("A Card 80GB, 1980\nAnother Card, 345", 1.98e9),
        ("A Card 80GB, 1980\nA Card 80GB, 345", None),  # which one is torch's?
        ("A Card 80GB, [N/A]", None),
        ("Another Card, 345", None),
    ],
)
def test_the_clock_of_an_nvidia_gpu_is_read(tmp_path, monkeypatch, lines, clock):
    program(tmp_path, monkeypatch, "nvidia-smi", lines)
    assert here.clock_hz(CARD) == clock


def test_no_nvidia_smi_no_clock(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert here.clock_hz(CARD) is None


@pytest.mark.parametrize(
    ("cards", "clock"),
    [
        (["0: 500Mhz\n1: 2100Mhz *\n2: 2400Mhz\n"], 2.1e9),
        (["0: 500Mhz\n1: 2100Mhz\n"], None),
        (["1: 2100Mhz *\n", "1: 500Mhz *\n"], None),
        ([], None),
    ],
)
def test_the_clock_of_an_amd_gpu_is_read(tmp_path, monkeypatch, cards, clock):
    for number, text in enumerate(cards):
        (tmp_path / f"card{number}/device").mkdir(parents=True)
        (tmp_path / f"card{number}/device/pp_dpm_sclk").write_text(text)
    monkeypatch.setattr(here, "AMD_CARDS", tmp_path)
    assert here.clock_hz(dataclasses.replace(CARD, vendor="AMD")) == clock


def test_nothing_ever_sets_a_clock():
    """One program speaks to the card, and only asks; sysfs is only read."""
    text = "".join(path.read_text() for path in (KERNELS / "chipmath").rglob("*.py"))
    commands = re.findall(r'\["nvidia-smi",[^\]]*\]', text)
    assert commands == ['["nvidia-smi", "--query-gpu=name,clocks.sm", "--format=csv,noheader,nounits"]']
    assert not re.search(r"rocm-smi|amd-smi|nvmlDeviceSet", text)
    assert "write" not in Path(here.__file__).read_text().replace("refuses to write", "")


def test_device_and_software_make_a_valid_recording(monkeypatch):
    pytest.importorskip("torch")
    experiment = EXPERIMENTS["copy_bandwidth"]
    rows = [dict.fromkeys(experiment.columns, 0)]
    replaced = dataclasses.replace(experiment, measure=lambda gpu, quick, progress: ({"timer": "none"}, rows))
    monkeypatch.setattr("chipmath.experiments.experiment.gpu", lambda: CARD)
    clocks = iter([1e9, 2e9])
    monkeypatch.setattr("chipmath.experiments.experiment.clock_hz", lambda gpu: next(clocks))
    taken = bench.take(replaced, replaced.run(False, silent), CLEAN, quick=False)
    assert json.loads(taken.to_json())["device"] == {
        "name": "A Card 80GB",
        "arch": "sm_90",
        "memory_bytes": 80 << 30,
        "clock_hz_before": 1e9,
        "clock_hz_after": 2e9,
    }
    assert taken.software["driver"] == "580.1"
    triton = importlib.util.find_spec("triton") and importlib.import_module("triton").__version__
    assert taken.software["triton"] == triton
    assert {name: taken.software[name] for name in ("torch", "numpy")} == {
        name: importlib.metadata.version(name) for name in ("torch", "numpy")
    }
    assert taken.software["runtime"] == "CUDA 13.0"
    assert taken.provenance().startswith("A Card 80GB (sm_90), driver 580.1, runtime CUDA 13.0, torch ")


def test_a_gpu_whose_memory_is_taken_is_told(monkeypatch):
    torch = pytest.importorskip("torch")

    def full(gpu, quick, progress):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    monkeypatch.setattr("chipmath.experiments.experiment.gpu", lambda: CARD)
    monkeypatch.setattr("chipmath.experiments.experiment.clock_hz", lambda gpu: None)
    told = r"^copy_bandwidth needs more memory than this GPU has free: .* Tried to allocate 2.00 GiB.$"
    with pytest.raises(ExperimentError, match=told):
        dataclasses.replace(EXPERIMENTS["copy_bandwidth"], measure=full).run(True, silent)


def test_rows_have_the_columns_and_come_sorted():
    experiment = EXPERIMENTS["named_barriers"]
    keys = [{"arch": arch, "number": number} for arch, number in (("sm_90", "3"), ("sm_90", "1"), ("sm_100", "7"))]
    rows = [key | dict.fromkeys(experiment.values, "x") for key in keys]
    assert [line[:2] for line in experiment.table(rows)] == [["sm_100", "7"], ["sm_90", "1"], ["sm_90", "3"]]
    missing = {name: cell for name, cell in rows[0].items() if name != "threads"}
    for wrong in (rows[0] | {"more": 1}, missing, missing | {"thread": "x"}):
        with pytest.raises(ValueError, match=r"named_barriers: a row has \[.*\], the columns are \["):
            experiment.table([rows[1], wrong])


def test_a_case_that_is_not_recorded_is_not_compared():
    experiment, taken = EXPERIMENTS["named_barriers"], newest("named_barriers")
    case = {"arch": "sm_90", "number": "11"}
    assert experiment.compare(taken, case) == (
        "",
        "not compared: the recording is of other cases or columns than the experiment has now",
    )


@pytest.mark.parametrize(
    ("folder", "typed"),
    [
        ("book/kernels", "PYTHONPATH=kernels python -m chipmath.bench residency"),
        ("downloads/chipmath-1f2e", "PYTHONPATH=chipmath-1f2e python -m chipmath.bench residency"),
        ("lib/python3.12/site-packages", "python -m chipmath.bench residency"),
    ],
)
def test_what_to_type_finds_the_package_where_it_is(monkeypatch, tmp_path, folder, typed):
    monkeypatch.setattr(bench, "PACKAGE", tmp_path / folder / "chipmath")
    assert bench.command("residency") == typed
