"""Recordings: what a committed one must be, what is refused, and that compilers still say what was recorded."""

import copy
import dataclasses
import json
import os
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
from chipmath import recordings
from chipmath.crosscompile import CompilerMissing
from chipmath.devices import DEVICES, PRODUCTS
from chipmath.experiments import EXPERIMENTS
from chipmath.recordings import RECORDED, Recording, code_digest, is_recorded, load, moment, newest, recorded

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(RECORDED.glob("*.json"))
COMPILED = [experiment for experiment in EXPERIMENTS.values() if experiment.kind == "compiled"]

VALID = {
    "schema": 1,
    "experiment": "copy_bandwidth",
    "kind": "measured",
    "code": "a" * 64,
    "commit": "b" * 40,
    "dirty": False,
    "taken": "2026-11-20T14:02:11Z",
    "device": {"name": "A Card 80GB", "arch": "sm_90", "clock_hz_before": None, "clock_hz_after": 1.7e9},
    "software": {"driver": "580.1", "torch": "2.11.0", "triton": None},
    "method": {"form": "full"},
    "columns": ["kernel", "bytes_per_s"],
    "rows": [["copy", 3.0e12], ["read", None]],
}


def recording(**changes) -> Recording:
    return Recording(**copy.deepcopy(VALID | changes))


# The committed ones


def test_every_compiled_experiment_is_recorded():
    assert [newest(experiment.name).experiment for experiment in COMPILED] == [e.name for e in COMPILED]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_schema(path):
    taken = load(path)
    assert list(json.loads(path.read_text())) == list(VALID), "exactly these fields, in this order"
    assert path.name == taken.file_name
    assert re.fullmatch(r"[0-9a-f]{40}", taken.commit), "a committed recording names its commit"
    assert taken.method["form"] == "full"
    assert path.read_text() == taken.to_json(), "written by bench, not by hand"
    experiment = EXPERIMENTS[taken.experiment]
    assert taken.kind == experiment.kind
    if "wrong_bytes" in taken.columns:
        assert {row["wrong_bytes"] for row in taken.select()} == {0}, "a wrong kernel has no time"
    if taken.kind == "measured":
        assert taken.device["arch"] in DEVICES
    if not taken.older_code:
        assert taken.columns == experiment.columns
        keys = [tuple(row[: len(experiment.keys)]) for row in taken.rows]
        assert keys == sorted(set(keys)), "sorted, and no row twice"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_cells_of_a_column_are_of_one_type(path):
    taken = load(path)
    for name in taken.columns:
        types = {type(row[name]) for row in taken.select() if row[name] is not None}
        assert len(types) <= 1, (name, types)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_recording_tells_of_the_machine_it_was_made_on(path):
    text = path.read_text()
    assert not re.search(r"(?<![\w.])/(?:\w+/)+|\\\\|https?:|[\w.]+@\w|\.(?:local|internal|lan)\b", text)


@pytest.mark.parametrize("experiment", COMPILED, ids=lambda experiment: experiment.name)
def test_compiled_recordings_have_every_case(experiment):
    taken = newest(experiment.name)
    keys = {tuple(case.values()) for case in experiment.cases}
    assert {tuple(row[: len(experiment.keys)]) for row in taken.rows} == keys
    assert taken.device["targets"] == sorted({case["arch"] for case in experiment.cases})


# History: what a hand that edits a number would leave. It is a guard against accidents and shortcuts: whoever invents a
# run with a commit, a date and a device of its own, and commits it, is only found by running the experiment again.


def git(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=check)
    return done.stdout.strip()


def needs_history() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("RECORDINGS NOT HELD AGAINST THEIR HISTORY: no .git here")
    if git("rev-parse", "--is-shallow-repository") == "true":
        pytest.skip("RECORDINGS NOT HELD AGAINST THEIR HISTORY: a shallow clone (git fetch --unshallow)")


def changed_without_a_run(versions: list[str]) -> bool:
    """Whether two different versions of a recording, as JSON, claim to be of the same run."""
    runs = {text: json.loads(text) for text in versions}
    moments = [(run["schema"], run["taken"]) for run in runs.values()]
    return len(moments) != len(set(moments))


def versions_of(path: Path) -> list[str]:
    """A recording as it is now and at every commit that touched it."""
    name = path.relative_to(ROOT).as_posix()
    commits = git("log", "--format=%H", "--diff-filter=AM", "--", name).split()
    return [path.read_text().strip(), *(git("show", f"{commit}:{name}") for commit in commits)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recording_changes_only_by_another_run(path):
    needs_history()
    assert not changed_without_a_run(versions_of(path)), f"{path.name} was edited: same moment, other content"


def test_an_edited_number_is_noticed():
    """The test above can fail, for every number of a recording, and lets another run pass."""
    taken = recording()
    edited = dataclasses.replace(taken, rows=[["copy", 3.1e12], ["read", None]])
    again = dataclasses.replace(edited, taken="2026-11-20T15:00:00Z")
    assert changed_without_a_run([edited.to_json(), taken.to_json()])
    assert not changed_without_a_run([again.to_json(), taken.to_json(), taken.to_json()])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_clean_recordings_are_of_the_code_of_their_commit(path, tmp_path, monkeypatch):
    """The claimed commit exists, is older than the run, and has the code that ran."""
    needs_history()
    taken = load(path)
    date = git("show", "-s", "--format=%aI", f"{taken.commit}^{{commit}}", check=False)
    assert date, f"{path.name} names the commit {taken.commit}, which this history does not have"
    assert moment(taken.taken) >= datetime.fromisoformat(date), "taken before its commit was made"
    if taken.dirty:
        pytest.skip(f"{path.name} was made with uncommitted changes: nothing to compare")
    if taken.older_code:
        pytest.skip(f"{path.name} is of older code: which sources that had is not known here")
    for name in EXPERIMENTS[taken.experiment].sources:
        show = ["git", "show", f"{taken.commit}:kernels/chipmath/{name}"]
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(subprocess.run(show, cwd=ROOT, capture_output=True, check=True).stdout)
    monkeypatch.setattr(recordings, "PACKAGE", tmp_path)
    assert EXPERIMENTS[taken.experiment].code() == taken.code


def compile_again(experiment, taken, case):
    recorded_by = taken.find(**case)["compiler"]
    try:
        compiler, verdict = experiment.compare(taken, case)
    except CompilerMissing as error:
        pytest.skip(f"not compiled again: {error}")
    if compiler != recorded_by:
        pytest.skip(f"compiled by {compiler}, recorded by {recorded_by}: {verdict}")
    return verdict


def compile_all_again(experiment, cases):
    """Every case says "same"; where one compiler is missing, the cases of others count all the same."""
    taken = newest(experiment.name)
    verdicts, left_out = set(), []
    for case in cases:
        try:
            verdicts.add(compile_again(experiment, taken, case))
        except pytest.skip.Exception as skipped:
            left_out.append(str(skipped))
    assert verdicts <= {"same"}
    if left_out:
        pytest.skip(f"{len(left_out)} of {len(cases)} cases: {left_out[0]}")


@pytest.mark.parametrize("experiment", COMPILED, ids=lambda experiment: experiment.name)
def test_a_sample_compiles_to_what_was_recorded_in_seconds(experiment):
    """A page waits for it: 5 s on an idle machine; 15 s of processor time, compilers' included, are a defect on any."""
    assert experiment.quick_cases
    before = sum(os.times()[:4])
    try:
        compile_all_again(experiment, experiment.quick_cases)
    finally:
        assert sum(os.times()[:4]) - before < 15


@pytest.mark.slow
@pytest.mark.parametrize("experiment", COMPILED, ids=lambda experiment: experiment.name)
def test_everything_compiles_to_what_was_recorded(experiment):
    """All but the sample, which the test above compiles."""
    compile_all_again(experiment, [case for case in experiment.cases if case not in experiment.quick_cases])


def test_a_changed_number_is_noticed():
    """The two tests above can fail."""
    experiment = EXPERIMENTS["matrix_passes"]
    taken, case = newest("matrix_passes"), experiment.quick_cases[0]
    rows = [list(row) for row in taken.rows]
    changed = next(row for row in rows if row[: len(case)] == list(case.values()))
    changed[taken.columns.index("passes")] += 1
    verdict = compile_again(experiment, dataclasses.replace(taken, rows=rows), case)
    assert re.fullmatch(r"differs: passes \d+ → \d+", verdict)


# What they say, against other sources


def test_passes_of_the_compiler_are_the_facts_of_devices():
    """LLVM 22's wait states, here, and LLVM 24's, in tests/test_devices.py, give the same numbers."""
    taken = newest("matrix_passes")
    rows = {(row["arch"], row["instruction"], row["fmt"]): row for row in taken.select()}
    facts = {
        (unit.arch, instruction.name, fmt): (instruction, unit)
        for unit in DEVICES.values()
        if unit.vendor == "AMD"
        for instruction in unit.matrix_instructions
        for fmt in instruction.formats
    }
    assert rows.keys() == facts.keys()
    for key, (instruction, unit) in facts.items():
        row = rows[key]
        assert row["opcode"] == instruction.name
        assert (row["wait_slots"], row["passes"]) == (instruction.wait_states, instruction.passes), key
        assert row["flop_per_clock_per_simd"] * unit.simds <= unit.matrix_rates[key[2]]


def test_peaks_of_the_compiler_are_those_of_the_data_sheets():
    taken = newest("matrix_passes")
    for product in (PRODUCTS["MI300X"], PRODUCTS["MI355X"]):
        for fmt in DEVICES[product.arch].matrix_rates:
            best = max(row["dense_flop_per_s"] for row in taken.select(arch=product.arch, fmt=fmt))
            assert best == pytest.approx(product.peak_flop_per_s(fmt), rel=1e-12)


def test_a_chain_costs_its_operands():
    """16x16x128: 8 VGPRs for A, 4 for C; 32x32x64: 8 and 16. With or without scales."""
    taken = newest("matrix_chains")
    for instruction, cost, until in (("16x16x128", 12, 20), ("32x32x64", 24, 10)):
        for prefix in ("mfma", "mfma_scale"):
            rows = taken.select(instruction=f"{prefix} {instruction}")
            straight = [row for row in rows if row["chains"] <= until]
            assert [row["registers"] for row in straight] == [10 + cost * row["chains"] for row in straight]
            assert {row["accumulators"] for row in straight} == {0}
            opcodes = {row["matrix_opcodes"] for row in rows}
            assert opcodes == {f"v_{prefix}_f32_{instruction}_f8f6f4"}, "scaled stays scaled"
            assert all(row["compiler_waves_per_simd"] * 4 == row["waves_per_unit"] for row in rows)


# Reading


def test_find_wants_exactly_one_row():
    taken = recording()
    assert taken.find(kernel="copy") == {"kernel": "copy", "bytes_per_s": 3.0e12}
    assert taken.select(kernel="none") == []
    with pytest.raises(LookupError, match=r"copy_bandwidth: 0 of 2 rows have kernel='write'; wanted one"):
        taken.find(kernel="write")
    with pytest.raises(LookupError, match="2 of 2 rows have any cells; wanted one"):
        taken.find()
    with pytest.raises(LookupError, match="has no column 'colour', only kernel, bytes_per_s"):
        taken.cell("colour", kernel="copy")


def test_provenance_is_one_line():
    assert recording().provenance() == (
        f"A Card 80GB (sm_90), driver 580.1, torch 2.11.0; commit {'b' * 7}, 2026-11-20"
    )
    compiled = recording(
        experiment="mx_tiles", kind="compiled", dirty=True, device={"targets": ["gfx950"]}, software={"clang": "22.1.8"}
    )
    assert compiled.provenance() == (
        f"clang 22.1.8 for gfx950; nothing ran; commit {'b' * 7} with uncommitted changes, 2026-11-20"
    )
    assert compiled.file_name == "compiled-mx_tiles.json"
    assert recording().file_name == "2026-11-20T1402-a-card-80gb-copy_bandwidth.json"


FORGED = [
    ("schema", 2, "1"),
    ("schema", True, "1"),
    ("experiment", "", "a name"),
    ("kind", "guessed", "one of compiled, measured, computed"),
    ("code", "abc", "a SHA-256"),
    ("commit", "HEAD", "40 hexadecimal digits"),
    ("commit", "B" * 40, "40 hexadecimal digits"),
    ("dirty", "no", "true or false"),
    ("taken", "yesterday", "a UTC time"),
    ("taken", "2026-02-30T14:02:11Z", "a UTC time"),
    ("taken", "2099-01-01T00:00:00Z", "a UTC time .* not in the future"),
    ("device", "H100", "an object"),
    ("device", {"name": "x"}, "lacks 'arch'"),
    ("software", {}, "an object of versions"),
    ("software", {"torch": 2.11}, "an object of versions"),
    ("method", {}, "an object whose form is quick or full"),
    ("columns", [], "a list of different names"),
    ("columns", ["kernel", "kernel"], "a list of different names"),
    ("rows", [], "a list of rows"),
    ("rows", [["copy"]], "row 0 is not a list of 2 cells"),
    ("rows", [["copy", [1]]], r"row 0, bytes_per_s: \[1\] is no string, number or null"),
]


@pytest.mark.parametrize(("name", "value", "message"), FORGED)
def test_a_forged_field_is_named_with_its_file(tmp_path, name, value, message):
    path = tmp_path / "forged.json"
    path.write_text(json.dumps(VALID | {name: value}))
    with pytest.raises(ValueError, match=rf"forged\.json: field '{name}'.*{message}"):
        load(path)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_are_finite(tmp_path, number):
    path = tmp_path / "nan.json"
    path.write_text(json.dumps(VALID).replace("3000000000000.0", number))
    with pytest.raises(ValueError, match=r"nan\.json: field 'rows': row 0, bytes_per_s: (nan|inf)"):
        load(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "broken.json: not JSON"),
        ("[]", "broken.json: not a recording's fields: lacks .*'code'.*, has none more"),
        (json.dumps(VALID | {"note": "x"}), r"lacks none, has \['note'\] more"),
        (json.dumps({k: v for k, v in VALID.items() if k != "commit"}), r"lacks \['commit'\], has none more"),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load(path)


def test_a_file_gives_back_what_was_written(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(recording().to_json())
    assert load(path) == recording()


def test_newest_and_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(recordings, "RECORDED", tmp_path)
    with pytest.raises(LookupError, match="no recording of 'copy_bandwidth'; there are some of nothing"):
        newest("copy_bandwidth")
    old, new = recording(), recording(taken="2026-11-21T00:00:00Z", rows=[["copy", 2.0e12]])
    for one in (new, old):
        (tmp_path / one.file_name).write_text(one.to_json())
    assert recorded("copy_bandwidth") == [old, new]
    assert newest("copy_bandwidth") == new
    later = recording(taken="2026-11-21T00:00:59Z", device=VALID["device"] | {"name": "1st Card"})
    (tmp_path / later.file_name).write_text(later.to_json())
    assert later.file_name < new.file_name, "in the same minute the names are in another order than the runs"
    assert recorded("copy_bandwidth") == [old, new, later]
    assert is_recorded(old)
    assert not is_recorded(recording(rows=[["copy", 9.9e12]])), "the same name, other numbers"
    assert not is_recorded(recording(taken="2026-11-22T00:00:00Z"))


# Older code


def test_older_code_is_code_that_changed():
    experiment = EXPERIMENTS["copy_bandwidth"]
    assert recording().older_code
    assert not recording(code=experiment.code()).older_code
    assert recording(experiment="no_longer_there").older_code


def test_the_digest_covers_names_and_contents(tmp_path, monkeypatch):
    monkeypatch.setattr(recordings, "PACKAGE", tmp_path)
    for name, text in (("a.py", "1"), ("b.py", "2"), ("c.py", "1")):
        (tmp_path / name).write_text(text)
    digest = code_digest(("a.py", "b.py"))
    assert digest == code_digest(("b.py", "a.py"))
    assert digest != code_digest(("c.py", "b.py"))
    (tmp_path / "b.py").write_text("3")
    assert digest != code_digest(("a.py", "b.py"))


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=lambda experiment: experiment.name)
def test_declared_sources_hold_what_decides_the_result(experiment):
    """The module that defines an experiment, each kernel source it names, and every experiments module it imports."""
    for name in experiment.sources:
        assert (recordings.PACKAGE / name).is_file(), name
    frame = {"experiments/experiment.py", "experiments/here.py"}  # runs and describes experiments, decides no number
    for name in [source for source in experiment.sources if source.endswith(".py")]:
        text = (recordings.PACKAGE / name).read_text()
        imported = {f"experiments/{m}.py" for m in re.findall(r"from chipmath\.experiments\.(\w+) import", text)}
        assert imported - frame <= set(experiment.sources), name


def test_reading_recordings_needs_only_the_standard_library():
    code = (
        "import sys; from chipmath.recordings import recorded; recorded(); "
        "assert not {'torch', 'triton', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT / "kernels")}, check=True)
