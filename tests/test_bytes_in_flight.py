"""Bytes in flight: the loads really are outstanding together, and the rows say what Little's law compares."""

import dataclasses
import re

import pytest
from chipmath.crosscompile import CompilerMissing
from chipmath.devices import KIB, PRODUCTS
from chipmath.experiments import EXPERIMENTS, ExperimentError, bytes_in_flight
from chipmath.experiments.bytes_in_flight import LOADS, loads_before_use
from chipmath.experiments.loops import innermost_loop
from chipmath.gpu import Gpu

torch = pytest.importorskip("torch")

CARD = Gpu("A Card 80GB", "NVIDIA", "sm_90", 80 << 30, "580.1", "CUDA 13.0")


def silent(done, total, text):
    pass


def compiled_or_skip(arch, kernel, loads):
    try:
        return bytes_in_flight.compile_stream(arch, kernel, loads)
    except CompilerMissing as error:
        pytest.skip(f"not compiled: {error}")


@pytest.mark.parametrize("kernel", ["read", "copy"])
@pytest.mark.parametrize(
    ("arch", "loads"), [(a, n) for a in ("sm_90", "gfx950") for n in LOADS] + [("sm_100", 8), ("gfx942", 8)]
)
def test_all_loads_are_out_before_the_first_is_used(arch, kernel, loads):
    binary = compiled_or_skip(arch, kernel, loads)
    assert loads_before_use(binary) == loads
    assert binary.spills == 0
    body = innermost_loop(binary.isa, "LDG|global_load")
    stores = re.findall(r"STG\.E\.128|global_store_dwordx4", body)
    assert len(stores) == (loads if kernel == "copy" else 0)
    assert len(re.findall(r"LDG\.|global_load|LDL|scratch_", body)) == loads, "of 16 bytes, and no other"


SASS = """
.L_x_1:
        /*0000*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0010*/                   LDG.E.128 R8, desc[UR4][R2.64+0x800] ;
        /*0020*/                   LOP3.LUT R0, R5, R4, R0, 0x96, !PT ;
        /*0030*/                   LDG.E.128 R12, desc[UR4][R2.64+0x1000] ;
        /*0040*/              @!P0 BRA `(.L_x_1) ;
"""
GCN = """
.LBB0_1:
\tglobal_load_dwordx4 v[4:7], v[2:3], off
\tglobal_load_dwordx4 v[8:11], v[2:3], off offset:2048
\ts_waitcnt vmcnt(1)
\tglobal_load_dwordx4 v[12:15], v[2:3], off offset:4096
\ts_cbranch_scc1 .LBB0_1
"""


CHASE = SASS.replace("LOP3.LUT R0, R5, R4, R0, 0x96, !PT", "LDG.E.128 R16, desc[UR4][R8.64]")  # a loaded address


@pytest.mark.parametrize(("arch", "isa"), [("sm_90", SASS), ("sm_90", CHASE), ("gfx950", GCN)])
def test_a_use_between_the_loads_is_noticed(arch, isa):
    binary = dataclasses.replace(compiled_or_skip(arch, "read", 1), isa=isa)
    assert loads_before_use(binary) == 2


def test_in_flight_is_threads_times_loads_times_sixteen_bytes():
    assert bytes_in_flight.in_flight("sm_90", groups=4, loads=2) == 4 * 128 * 2 * 16
    assert bytes_in_flight.in_flight("gfx950", groups=1, loads=8) == 32 * KIB


def test_parity_is_that_of_all_words():
    words = torch.tensor([1, 2, 4, 8, 16, -1, 7], dtype=torch.int32)
    assert bytes_in_flight._parity(words) == 1 ^ 2 ^ 4 ^ 8 ^ 16 ^ -1 ^ 7


def equal_turns(candidates, stopwatch, *, rounds):
    """In the place of `take_turns`: a second for each, and no call."""
    return {name: [1.0] * rounds for name in candidates}


def rehearsed():
    try:
        return bytes_in_flight.rehearse(silent)
    except CompilerMissing as error:
        pytest.skip(f"not rehearsed: {error}")


def test_rates_count_what_moves_and_the_law_what_is_read(monkeypatch):
    """A copy in two seconds and a read in one, on three units: the reads of both are a buffer."""
    times = {"copy": [2.0] * 3, "read": [1.0] * 3, "torch": [4.0] * 3}

    def turns(candidates, stopwatch, *, rounds):
        kind = {name: "torch" if name == bytes_in_flight.REFERENCE else name[2:6] for name in candidates}
        return {name: times[kind[name]] for name in candidates}

    monkeypatch.setattr(bytes_in_flight, "take_turns", turns)
    _, rows = rehearsed()
    size = 3 * 64 * KIB
    copy, read = (next(r for r in rows if (r["kernel"], r["loads"]) == (k, 4)) for k in ("copy", "read"))
    assert read["bytes_per_s_p50"] == size
    assert copy["bytes_per_s_p50"] == 2 * size / 2
    assert copy["ratio_to_reference_p50"] == (2 * size / 2) / (2 * size / 4)
    assert read["in_flight_over_rate_s"] == 3 * read["bytes_in_flight"] / size
    assert copy["in_flight_over_rate_s"] == 3 * copy["bytes_in_flight"] / (size / 2)
    assert set(read) == set(EXPERIMENTS["bytes_in_flight"].columns)


def test_more_groups_than_registers_admit_are_left_out():
    """Eight loads take more than 32 registers a thread: an SM of an H100 never holds 16 groups of them."""
    assert compiled_or_skip("sm_90", "copy", 8).registers > 32
    forms = (8,), (1, 16), 2
    _, rows = bytes_in_flight._measure(
        "cpu", "sm_90", 3, 3 * 64 * KIB, forms, bytes_in_flight.host_stopwatch, None, silent
    )
    assert {(row["kernel"], row["waves_per_unit"]) for row in rows} == {("read", 4), ("copy", 4)}


@pytest.mark.parametrize("kernel", ["read", "copy"])
def test_a_wrong_kernel_is_never_timed(monkeypatch, kernel):
    true = bytes_in_flight._runner

    def broken(stack, where, binary, threads, shared, groups, source, target, words, vectors, which):
        if which != kernel:
            return true(stack, where, binary, threads, shared, groups, source, target, words, vectors, which)
        return lambda i: None

    monkeypatch.setattr(bytes_in_flight, "_runner", broken)
    monkeypatch.setattr(bytes_in_flight, "take_turns", equal_turns)
    method, rows = rehearsed()
    assert {row["kernel"] for row in rows} == {"read", "copy"} - {kernel}
    assert method["refused"].keys() == {f"{kernel}, 1 groups a unit, {loads} loads" for loads in (1, 4)}
    why = {"read": "the parity of all words is", "copy": "49152 of 49152 words are wrong"}[kernel]
    assert all(told.startswith(why) for told in method["refused"].values())


def test_where_every_kernel_is_wrong_there_is_nothing_to_record(monkeypatch):
    monkeypatch.setattr(bytes_in_flight, "_runner", lambda *a: lambda i: None)
    with pytest.raises(ExperimentError, match="nothing to time: read, 1 groups a unit, 1 loads: the parity"):
        rehearsed()


@pytest.mark.parametrize(
    ("kernel", "why"), [("read", "the parity of all words is 1, not 64"), ("copy", "64 of 64 words are wrong")]
)
def test_memory_that_holds_the_right_words_already_helps_no_kernel(kernel, why):
    """Both targets are poisoned before the check."""
    source = torch.arange(1, 65, dtype=torch.int32)
    parity = bytes_in_flight._parity(source)
    words = torch.tensor([parity, 0, 0], dtype=torch.int32)
    with pytest.raises(ExperimentError, match=why):
        bytes_in_flight._check(kernel, lambda i: None, source, source.clone(), words, parity)


def test_machine_code_with_other_loads_is_never_timed(monkeypatch):
    monkeypatch.setattr(bytes_in_flight, "loads_before_use", lambda binary: 3)
    with pytest.raises(ExperimentError, match="read, 1 groups a unit, 1 loads: the machine code has 3 loads before"):
        rehearsed()


def test_machine_code_without_a_loop_is_named():
    binary = dataclasses.replace(compiled_or_skip("sm_90", "read", 1), isa="\tEXIT ;\n")
    with pytest.raises(ExperimentError, match="the machine code has no loop with LDG"):
        loads_before_use(binary)


def test_little_on_data_sheets():
    """Amended facts: an H100 at 600 to 900 ns has 14.9 to 22.3 KiB of reads in flight on an SM."""
    rows = [row for row in bytes_in_flight.predict() if row["device"] == PRODUCTS["H100 SXM"].name]
    assert [row["bytes_in_flight"] / KIB for row in rows] == [
        pytest.approx(14.87, abs=0.01),
        pytest.approx(22.31, abs=0.01),
    ]
    assert rows[0]["loads_of_a_full_unit"] == pytest.approx(14.87 * KIB / (2048 * 16), abs=1e-3)


@pytest.mark.parametrize(
    ("card", "told"),
    [
        (dataclasses.replace(CARD, arch="gfx90a"), "bytes_in_flight knows gfx942, .*, not gfx90a"),
        (dataclasses.replace(CARD, memory_bytes=2 << 30), "bytes_in_flight wants 6144 MiB, this GPU has 2048"),
    ],
)
def test_other_gpus_are_left_alone(card, told):
    with pytest.raises(ExperimentError, match=told):
        bytes_in_flight.measure(card, False, silent)
