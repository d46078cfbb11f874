"""ncu's table as it is read, the command that asks for it, and machines without ncu. The profiler here is a script."""

import stat
import sys

import pytest
from chipmath import bench
from chipmath.experiments import EXPERIMENTS, ExperimentError, hardware_counters
from chipmath.experiments.hardware_counters import FUNCTIONS, METRICS, PRODUCT, QUANTIZER, REGISTERS, profile, read
from chipmath.gpu import Gpu
from chipmath.matmul_tiles import TILES
from chipmath.recordings import newest

NAMES = ["ID", "Process ID", "Host Name", "Kernel Name", *METRICS.values(), REGISTERS]
UNITS = ["", "", "", "", *["%"] * len(METRICS), "register/thread"]
VALUES = ["0", "77", "somewhere", "patches_kernel", "30.5", "31.25", "88.1", "0", "1,093.75", "62"]


def table(*lines):
    return "==PROF== Connected to process 77\n" + "\n".join(",".join(f'"{cell}"' for cell in line) for line in lines)


def test_a_table_gives_every_metric():
    found = read(table(NAMES, UNITS, VALUES), "patches_kernel")
    assert list(found) == [*METRICS.values(), REGISTERS]
    assert list(found.values()) == [30.5, 31.25, 88.1, 0.0, 1093.75, 62.0]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "ncu profiled 0 launches of patches_kernel, not one"),
        ([NAMES, UNITS, VALUES, VALUES], "ncu profiled 2 launches of patches_kernel, not one"),
        ([NAMES, UNITS, [*VALUES[:3], "reduce_kernel(float*)", *VALUES[4:]]], "'reduce_kernel(float*)', not patches"),
        ([NAMES, UNITS, [*VALUES[:6], "n/a", *VALUES[7:]]], "ncu has no number for sm__inst_issued.*: 'n/a'"),
        ([NAMES[:-1], UNITS[:-1], VALUES[:-1]], "ncu has no number for launch__registers_per_thread: None"),
    ],
    ids=["none", "two", "another", "n/a", "missing"],
)
def test_what_is_not_one_launch_with_all_metrics_is_refused(lines, message):
    with pytest.raises(ExperimentError, match=message.replace("(", r"\(").replace("*)", r"\*\)")):
        read(table(*lines), "patches_kernel")


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Put a program named ncu on the PATH."""

    def make(body):
        path = tmp_path / "ncu"
        path.write_text(f"#!{sys.executable}\nimport sys\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        return tmp_path

    return make


@pytest.mark.parametrize("kernel", FUNCTIONS)
def test_ncu_is_asked_for_one_warm_launch_with_the_clocks_as_they_are(script, kernel):
    folder = script("import json, pathlib\nargs = sys.argv[1:]\n"
                    "pathlib.Path(__file__).with_name('args.json').write_text(json.dumps(args))\n"
                    "pathlib.Path(args[args.index('--log-file') + 1]).write_text('a table')")  # fmt: skip
    assert hardware_counters.unavailable() == ""
    assert profile(kernel) == "a table"
    asked = (folder / "args.json").read_text()
    for part in ('"--clock-control", "none"', '"--launch-skip", "1", "--launch-count", "1"', f'"{FUNCTIONS[kernel]}"'):
        assert part in asked
    assert all(metric in asked for metric in (*METRICS.values(), REGISTERS))
    assert asked.endswith(f'"-m", "chipmath.experiments.hardware_counters", "{kernel}"]')


def test_a_profiler_that_may_not_count_says_why(script):
    script("print('==PROF== x\\n==ERROR== ERR_NVGPUCTRPERM - no permission for counters'); sys.exit(1)")
    with pytest.raises(ExperimentError, match="ncu, quantize_both: ERR_NVGPUCTRPERM - no permission for counters"):
        profile(QUANTIZER)
    script("print('Traceback\\nValueError: x'); sys.exit(3)")
    with pytest.raises(ExperimentError, match="ncu, quantize_both: ValueError: x"):
        profile(QUANTIZER)


def test_a_profiler_that_hangs_is_ended(script):
    script("import time; time.sleep(60)")
    with pytest.raises(ExperimentError, match=r"ncu, quantize_both: ended after 0\.5 s without a table"):
        profile(QUANTIZER, seconds=0.5)


@pytest.mark.parametrize("quick", [False, True])
def test_a_page_waits_for_the_profiler_no_longer_than_for_others(script, monkeypatch, quick):
    """A full run has the time that it takes for both kernels; the quick form has what its page promised, for one."""
    given = []
    monkeypatch.setattr(hardware_counters, "run_group", lambda command, timeout, **rest: given.append(timeout) or 1 / 0)
    script("")
    card = Gpu("A Card", "NVIDIA", "sm_90", 80 << 30, "580.1", "CUDA 13.0")
    with pytest.raises(ZeroDivisionError):
        hardware_counters.measure(card, quick, lambda *a: None)
    assert given == [EXPERIMENTS["hardware_counters"].live_seconds if quick else hardware_counters.PROFILE_SECONDS]


def test_ncu_is_found_where_its_installer_puts_it(tmp_path, monkeypatch):
    """Its version, not the order of its letters, is the newest; what is on the PATH comes first."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(hardware_counters, "NSIGHT", tmp_path)
    monkeypatch.setattr(hardware_counters, "find_cuda_tool", lambda name: None)
    assert hardware_counters.find_ncu() is None
    assert str(tmp_path) in hardware_counters.unavailable()
    for version in ("2025.10.0", "2025.3.1"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "ncu").touch()
    assert hardware_counters.find_ncu() == str(tmp_path / "2025.10.0/ncu")
    monkeypatch.setattr(hardware_counters, "find_cuda_tool", lambda name: f"/usr/local/cuda/bin/{name}")
    assert hardware_counters.find_ncu() == "/usr/local/cuda/bin/ncu"


@pytest.mark.parametrize(
    ("arguments", "runs"), [(["--measured"], False), (["hardware_counters", "--measured"], True)], ids=str
)
def test_without_ncu_the_others_are_recorded_all_the_same(monkeypatch, capsys, tmp_path, arguments, runs):
    """One that is asked for by name runs, and says itself why it cannot."""
    done = []
    monkeypatch.setattr(hardware_counters, "find_ncu", lambda: None)
    monkeypatch.setattr(bench, "gpu", lambda: Gpu("A Card 80GB", "NVIDIA", "sm_90", 80 << 30, "580.1", "CUDA 13.0"))
    monkeypatch.setattr(bench, "_record_apart", lambda experiment, *rest: not done.append(experiment.name))
    assert bench.main([*arguments, "--out", str(tmp_path)]) == 0
    measured = {experiment.name for experiment in EXPERIMENTS.values() if experiment.kind == "measured"}
    assert set(done) == measured - (set() if runs else {"hardware_counters"})
    assert ("hardware_counters: left out, no ncu" in capsys.readouterr().err) is not runs


def test_the_launched_code_is_that_which_the_model_is_asked_about():
    """The names by which ncu finds the kernels are those in the compiled code."""
    pytest.importorskip("triton")
    for kernel, function in FUNCTIONS.items():
        assert hardware_counters._compile(kernel, "sm_90").kernel == function


def test_predictions_are_of_recorded_code():
    """An SM of an H100 has 64 slots for warps."""
    shares = {row["kernel"]: row["admitted_by_model"] for row in hardware_counters.predict()}
    case = {"arch": "sm_90", "variant": "both: as launched", "dtype": "bfloat16"}
    quantizer = newest("quantizer_code").find(**case)
    assert quantizer["waves_per_unit"] == quantizer["groups_per_unit"] * quantizer["threads"] // 32
    (tile_m, tile_n, tile_k), warps, stages = TILES[PRODUCT, "NVIDIA"]
    tile = {"tile_m": tile_m, "tile_n": tile_n, "tile_k": tile_k, "num_warps": warps, "num_stages": stages}
    groups = newest("gemm_routes").cell("groups_per_unit", arch="sm_90", route=PRODUCT, **tile)
    assert shares == {QUANTIZER: quantizer["waves_per_unit"] / 64, PRODUCT: groups * warps / 64}
    assert all(0 < share <= 1 for share in shares.values())


def test_percents_of_the_profiler_become_shares_beside_the_models():
    """The rehearsal's table says 12.5 percent of everything, and 64 registers."""
    _, rows = hardware_counters.rehearse(lambda *a: None)
    predicted = {row["kernel"]: row["admitted_by_model"] for row in hardware_counters.predict()}
    for row in rows:
        assert {row[name] for name in METRICS} == {0.125}
        assert (row["registers"], row["admitted_by_model"]) == (64, predicted[row["kernel"]])
        assert set(row) == set(EXPERIMENTS["hardware_counters"].columns)
    assert [row["kernel"] for row in rows] == list(FUNCTIONS)


def test_one_kernel_that_is_not_counted_does_not_cost_the_other():
    def its(kernel):
        raise ExperimentError(f"ncu, {kernel}: ended after 75 s without a table")

    _, whole = hardware_counters.rehearse(lambda *a: None)
    tables = {QUANTIZER: "a table"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            hardware_counters,
            "read",
            lambda text, function: {**dict.fromkeys(METRICS.values(), 12.5), hardware_counters.REGISTERS: 64},
        )
        method, rows = hardware_counters._measure(
            "sm_90",
            list(FUNCTIONS),
            lambda kernel: tables.get(kernel) or its(kernel),
            hardware_counters.recorded_code,
            lambda *a: None,
        )
    assert rows == [row for row in whole if row["kernel"] == QUANTIZER]
    assert method["left_out"] == {PRODUCT: f"ncu, {PRODUCT}: ended after 75 s without a table"}
    with pytest.raises(ExperimentError, match=r"quantize_both: ended .*; ncu, fp16_relative: ended"):
        hardware_counters._measure("sm_90", list(FUNCTIONS), its, hardware_counters.recorded_code, lambda *a: None)


@pytest.mark.parametrize("arch", ["sm_120", "gfx950"])
def test_other_chips_are_refused(arch):
    card = Gpu("A Card", "NVIDIA", arch, 80 << 30, "580.1", "CUDA 13.0")
    with pytest.raises(ExperimentError, match=f"hardware_counters knows sm_90, sm_100, not {arch}"):
        hardware_counters.measure(card, True, lambda *a: None)


def test_a_table_from_a_profiler_that_failed_is_not_read(script):
    """It may be of part of what was asked for."""
    script("import pathlib\nargs = sys.argv[1:]\n"
           "pathlib.Path(args[args.index('--log-file') + 1]).write_text('a table'); sys.exit(9)")  # fmt: skip
    with pytest.raises(ExperimentError, match="ncu, quantize_both: a table"):
        profile(QUANTIZER)


@pytest.mark.parametrize("cell", ["12.5 %", "1e", "-3", "12.5.1", "nan", ""])
def test_a_cell_that_is_not_a_number_alone_is_refused(cell):
    with pytest.raises(ExperimentError, match="ncu has no number for sm__inst_issued"):
        read(table(NAMES, UNITS, [*VALUES[:6], cell, *VALUES[7:]]), "patches_kernel")
