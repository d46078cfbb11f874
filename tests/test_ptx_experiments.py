"""The kernels for NVIDIA that experiments time, executed: sums, clocks, copies and counters are as they expect.

Nothing here is a time: the emulator's clock counts its own instructions.
"""

import pytest
import torch
from chipmath.crosscompile import CompilerMissing
from chipmath.experiments import bytes_in_flight, ilp_sweep, residency_launches
from chipmath.experiments.ilp_sweep import Point
from chipmath.ilp import INSTRUCTIONS, operands, span_of_units, wrong_waves
from oracles.execute import execute
from oracles.ptx_machine import UNITS

ON_NVIDIA = [
    (name, source) for name, each in INSTRUCTIONS.items() if each.arch.startswith("sm_") for source in each.sources
]


def ptx_or_skip(build, *arguments):
    try:
        binary = build(*arguments)
    except CompilerMissing as error:
        pytest.skip(f"not compiled: {error}")
    return binary if binary.ptx else pytest.skip("NVRTC hands out no PTX")


def launch_chains(name, source, chains, steps):
    binary, blocks = ptx_or_skip(ilp_sweep.compile_chains, name, chains, source), 2 * UNITS
    arguments = ilp_sweep.launch_arguments(Point(name, source, chains, 2), blocks, 0, "cpu")
    stored = execute(binary, (blocks,), [*arguments[:5], steps])
    assert all((counts == 1).all() for counts in stored[:4])
    return ilp_sweep.trace_of(arguments, blocks * INSTRUCTIONS[name].threads)


@pytest.mark.parametrize("chains", [1, 3, 6])
@pytest.mark.parametrize(("name", "source"), ON_NVIDIA)
def test_timed_chains_add_up_and_read_their_clocks_around_the_loop(name, source, chains):
    """Every wave has its sum: operands and accumulators are where they belong."""
    two, four = launch_chains(name, source, chains, 2), launch_chains(name, source, chains, 4)
    depth, total = INSTRUCTIONS[name].depth, operands(name, chains, ilp_sweep.SEED)[1]
    assert wrong_waves(two, name, total, 2 * depth) == wrong_waves(four, name, total, 4 * depth) == 0
    assert wrong_waves(two, name, total, 2 * depth + 1) > 0
    spans = [span_of_units(trace, groups_per_unit=2) for trace in (two, four)]
    assert [len(each) for each in spans] == [UNITS, UNITS]
    # Two steps more between the clocks are the chains' instructions, and of the loop's own and wgmma's waits a few.
    each = 2 * chains if (name[:5], source) == ("wgmma", "Gluon") else 0  # Triton fences and commits every one
    assert 0 <= spans[1][0] - spans[0][0] - 2 * depth * chains <= 2 * (6 + each)


@pytest.mark.parametrize("loads", [1, 4, 8])
@pytest.mark.parametrize("kernel", ["copy", "read"])
def test_streams_touch_every_word_once(kernel, loads):
    binary = ptx_or_skip(bytes_in_flight.compile_stream, "sm_90", kernel, loads)
    groups, threads = 3, bytes_in_flight.threads_of("sm_90")
    vectors = 5 * threads * loads  # some groups have one turn more than others
    source = torch.randint(-(2**31), 2**31, (4 * vectors,), generator=torch.Generator().manual_seed(0)).int()
    target, words = torch.zeros_like(source), torch.zeros(groups * threads, dtype=torch.int32)
    _, stored, left, *_ = execute(binary, (groups,), [source, target, words, vectors, groups])
    if kernel == "copy":
        assert torch.equal(target, source)
        assert (stored == 1).all()
        assert not left.any()
    else:
        assert bytes_in_flight._parity(words) == bytes_in_flight._parity(source)
        assert not stored.any()
        assert (left == 1).all()


def test_groups_count_themselves_in_and_out():
    """All groups of the emulator are there at once, so a unit's most is its share of them."""
    threads, live, groups = 64, 4, 3 * UNITS
    binary = ptx_or_skip(residency_launches.compile_launch, "sm_90", threads, live)
    present, most, visits = (torch.zeros(16, dtype=torch.int32) for _ in range(3))
    seeds, sums = torch.arange(1, live + 1, dtype=torch.int32), torch.zeros(groups * threads, dtype=torch.int32)
    execute(binary, (groups,), [present, most, visits, seeds, sums, 1000])
    assert present.tolist() == [0] * 16
    assert most.tolist() == visits.tolist() == [3] * UNITS + [0] * (16 - UNITS)
    assert sums.tolist() == [live * (live + 1) // 2] * (groups * threads)
