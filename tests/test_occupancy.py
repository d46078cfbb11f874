import re
import time

import numpy as np
import pytest
from chipmath.devices import DEVICES
from chipmath.occupancy import occupancy, occupancy_table, register_ceilings, shared_ceilings

KIB = 1024


def launch(**arguments):
    return arguments


# Worked by hand from the rules named in devices.py: launch -> groups per unit, percent of the wave slots, limiters.
GOLDEN = [
    # gfx950 hands out LDS in 128 blocks of 1280 bytes: 32 KiB is 26 blocks, so 4 groups; 160 / 32 would be 5.
    ("gfx950", launch(registers=64, shared_bytes=32 * KIB, threads=256), 4, 50.0, {"shared"}),
    ("gfx950", launch(registers=128, scalars=50, shared_bytes=32 * KIB, threads=256), 4, 50.0, {"registers", "shared"}),
    ("gfx950", launch(registers=96, scalars=50, shared_bytes=32 * KIB, threads=256), 4, 50.0, {"shared"}),
    ("gfx950", launch(registers=8, shared_bytes=32_000, threads=256), 5, 62.5, {"shared"}),
    ("gfx950", launch(registers=8, shared_bytes=32_001, threads=256), 4, 50.0, {"shared"}),
    ("gfx950", launch(registers=8, shared_bytes=53_760, threads=256), 3, 37.5, {"shared"}),
    ("gfx950", launch(registers=8, shared_bytes=53_761, threads=256), 2, 25.0, {"shared"}),
    ("gfx950", launch(registers=8, shared_bytes=53 * KIB, threads=256), 2, 25.0, {"shared"}),
    ("gfx950", launch(registers=8, shared_bytes=163_840, threads=256), 1, 12.5, {"shared"}),
    ("gfx950", launch(registers=164, shared_bytes=68_576, threads=256), 2, 25.0, {"shared"}),  # 54 blocks
    ("gfx950", launch(registers=32, shared_bytes=16 * KIB, threads=128), 9, 56.25, {"shared"}),  # 13 blocks
    # gfx942: 64 blocks of 512 bytes; powers of two lose nothing.
    ("gfx942", launch(registers=128, shared_bytes=32 * KIB, threads=256), 2, 25.0, {"shared"}),
    ("gfx942", launch(registers=8, shared_bytes=16 * KIB + 1, threads=256), 3, 37.5, {"shared"}),
    # AMD's MI250 profiling example: 64 KiB of LDS 12.49 %, 122 VGPRs 49.92 %, 80 SGPRs 98.9 %.
    ("gfx90a", launch(registers=8, shared_bytes=64 * KIB, threads=256), 1, 12.5, {"shared"}),
    ("gfx90a", launch(registers=122, threads=256), 4, 50.0, {"registers"}),
    ("gfx90a", launch(registers=8, scalars=80, threads=256), 8, 100.0, {"waves", "scalars"}),
    # VGPRs in steps of 8 out of 512 rows: 100 is 104 rows, 96 stays 96.
    ("gfx950", launch(registers=64, threads=256), 8, 100.0, {"waves", "registers"}),
    ("gfx950", launch(registers=65, threads=256), 7, 87.5, {"registers"}),
    ("gfx950", launch(registers=96, threads=256), 5, 62.5, {"registers"}),
    ("gfx950", launch(registers=100, threads=256), 4, 50.0, {"registers"}),
    ("gfx950", launch(registers=168, threads=256), 3, 37.5, {"registers"}),
    ("gfx950", launch(registers=169, threads=256), 2, 25.0, {"registers"}),
    ("gfx950", launch(registers=202, threads=256), 2, 25.0, {"registers"}),
    # AccVGPRs start at a multiple of 4: 13 + 51 is 16 + 51 = 67, so 72 rows; 125 + 3 is 128 + 3, so 136.
    ("gfx950", launch(registers=13, accumulators=51, threads=256), 7, 87.5, {"registers"}),
    ("gfx950", launch(registers=16, accumulators=48, threads=256), 8, 100.0, {"waves", "registers"}),
    ("gfx950", launch(registers=125, accumulators=3, threads=256), 3, 37.5, {"registers"}),
    ("gfx90a", launch(registers=5, accumulators=128, threads=256), 3, 37.5, {"registers"}),
    ("gfx950", launch(registers=250, accumulators=44, threads=256), 1, 12.5, {"registers"}),
    ("gfx950", launch(registers=252, accumulators=246, threads=256), 1, 12.5, {"registers"}),
    ("gfx950", launch(registers=256, accumulators=256, threads=256), 1, 12.5, {"registers"}),
    # SGPRs in steps of 16, and 16 more for the trap handler, out of 800.
    ("gfx950", launch(registers=32, scalars=80, threads=256), 8, 100.0, {"waves", "scalars"}),
    ("gfx950", launch(registers=32, scalars=81, threads=256), 7, 87.5, {"scalars"}),
    ("gfx950", launch(registers=32, scalars=96, threads=256), 7, 87.5, {"scalars"}),
    ("gfx950", launch(registers=32, scalars=97, threads=256), 6, 75.0, {"scalars"}),
    ("gfx950", launch(registers=32, scalars=108, threads=256), 6, 75.0, {"scalars"}),
    # rocm-systems PR 10618: the runtime counted 32 one-wave groups on MI300X, the hardware took 28.
    ("gfx942", launch(registers=32, scalars=96, threads=64), 28, 87.5, {"scalars"}),
    # Only whole groups: 5 waves go 6 times into 32 slots, 12 waves twice, 6 waves once into 8, 7 waves twice into 16.
    ("gfx950", launch(registers=32, threads=320), 6, 93.75, {"waves"}),
    ("gfx950", launch(registers=32, threads=768), 2, 75.0, {"waves"}),
    ("gfx950", launch(registers=176, threads=384), 1, 18.75, {"registers"}),
    ("gfx950", launch(registers=120, threads=448), 2, 43.75, {"registers"}),
    ("gfx950", launch(registers=32, threads=1), 32, 100.0, {"waves"}),  # one thread takes a wave
    ("gfx950", launch(registers=32, threads=65), 16, 100.0, {"waves", "barriers"}),
    # NVIDIA: 512 rows a sub-partition, in steps of 8.
    ("sm_90", launch(registers=32, threads=128), 16, 100.0, {"waves", "registers"}),
    ("sm_90", launch(registers=48, threads=128), 10, 62.5, {"registers"}),
    ("sm_90", launch(registers=96, threads=128), 5, 31.25, {"registers"}),
    ("sm_90", launch(registers=174, threads=128), 2, 12.5, {"registers"}),
    ("sm_90", launch(registers=255, threads=128), 2, 12.5, {"registers"}),
    ("sm_90", launch(registers=96, threads=640), 1, 31.25, {"registers"}),
    # 1 KiB of every block is the driver's: 2 x 113 KiB + 2 KiB fill 228 KiB to the byte.
    ("sm_90", launch(registers=32, shared_bytes=232_448, threads=128), 1, 6.25, {"shared"}),
    ("sm_90", launch(registers=32, shared_bytes=115_712, threads=128), 2, 12.5, {"shared"}),
    ("sm_90", launch(registers=32, shared_bytes=115_713, threads=128), 1, 6.25, {"shared"}),
    ("sm_90", launch(registers=32, shared_bytes=76_800, threads=128), 3, 18.75, {"shared"}),
    ("sm_90", launch(registers=32, shared_bytes=76_801, threads=128), 2, 12.5, {"shared"}),
    ("sm_90", launch(registers=8, shared_bytes=12 * KIB, threads=32), 17, 26.5625, {"shared"}),  # 19 without the 1 KiB
    ("sm_80", launch(registers=32, shared_bytes=82_944, threads=128), 2, 12.5, {"shared"}),  # 164 KiB / 2 - 1 KiB
    ("sm_120", launch(registers=32, shared_bytes=50_176, threads=128), 2, 8 / 0.48, {"shared"}),  # 100 KiB / 2 - 1 KiB
    # Blocks an SM, and named barriers: 64 of them on sm_90, 24 on sm_120, never a limit before.
    ("sm_90", launch(registers=32, threads=64), 32, 100.0, {"waves", "groups", "registers"}),
    ("sm_86", launch(registers=32, threads=64), 16, 32 / 0.48, {"groups"}),
    ("sm_89", launch(registers=32, threads=64, barriers=16), 24, 100.0, {"waves", "groups"}),
    ("sm_90", launch(registers=32, threads=64, barriers=8), 8, 25.0, {"barriers"}),
    ("sm_90", launch(registers=32, threads=64, barriers=16), 4, 12.5, {"barriers"}),
    ("sm_120", launch(registers=32, threads=64, barriers=8), 3, 6 / 0.48, {"barriers"}),
    ("sm_120", launch(registers=32, threads=64, barriers=16), 1, 2 / 0.48, {"barriers"}),
    ("sm_90", launch(registers=32, threads=64, barriers=0), 32, 100.0, {"waves", "groups", "registers"}),
]

REFUSED = [
    (
        "gfx950",
        launch(registers=240, threads=1024),
        {"registers"},
        "threads=[^;]* a workgroup is 16 waves of 240 registers a thread[^;]* holds 8",
    ),
    (
        "gfx950",
        launch(registers=256, accumulators=44, threads=512),
        {"registers"},
        "threads=[^;]* 8 waves of 304 [^;]* holds 4",
    ),
    ("gfx950", launch(registers=257, threads=256), {"registers"}, "registers=257: a wave addresses 256 VGPRs"),
    (
        "gfx950",
        launch(registers=8, accumulators=257, threads=256),
        {"registers"},
        "accumulators=257: [^;]*256 AccVGPRs",
    ),
    ("gfx950", launch(registers=8, scalars=109, threads=256), {"scalars"}, "scalars=109: [^;]* 108"),
    (
        "gfx950",
        launch(registers=8, shared_bytes=163_841, threads=256),
        {"shared"},
        "shared_bytes=163841: [^;]* 163840 bytes of LDS",
    ),
    (
        "gfx942",
        launch(registers=8, shared_bytes=65_537, threads=256),
        {"shared"},
        "shared_bytes=65537: [^;]* 65536 bytes of LDS",
    ),
    ("gfx950", launch(registers=8, threads=1025), {"waves"}, "threads=1025: a workgroup has 1 to 1024"),
    ("gfx950", launch(registers=8, threads=0), {"waves"}, "threads=0: a workgroup has 1 to 1024"),
    # What is just allowed is no reason, whatever else is refused.
    (
        "gfx950",
        launch(registers=256, accumulators=256, scalars=108, shared_bytes=163_840, threads=0),
        {"waves"},
        "threads=0: a workgroup has 1 to 1024",
    ),
    ("sm_90", launch(registers=255, shared_bytes=232_448, threads=0), {"waves"}, "threads=0: a block has 1 to 1024"),
    # 672 threads are 21 warps; 88 registers leave room for 5 in each sub-partition, 96 too.
    (
        "sm_90",
        launch(registers=88, threads=672),
        {"registers"},
        "threads=[^;]* a block is 21 warps of 88 registers a thread[^;]* holds 20",
    ),
    (
        "sm_90",
        launch(registers=96, threads=672),
        {"registers"},
        "threads=[^;]* a block is 21 warps of 96 registers a thread[^;]* holds 20",
    ),
    ("sm_90", launch(registers=256, threads=128), {"registers"}, "registers=256: a thread addresses 255"),
    (
        "sm_90",
        launch(registers=32, shared_bytes=232_449, threads=128),
        {"shared"},
        "shared_bytes=232449: [^;]* 232448 bytes",
    ),
    (
        "sm_86",
        launch(registers=32, shared_bytes=101_377, threads=128),
        {"shared"},
        "shared_bytes=101377: [^;]* 101376 bytes",
    ),
    ("sm_90", launch(registers=32, threads=1025), {"waves"}, "threads=1025: a block has 1 to 1024"),
    ("sm_90", launch(registers=32, threads=0), {"waves"}, "threads=0: a block has 1 to 1024"),
    (
        "sm_90",
        launch(registers=300, shared_bytes=10**6, threads=2048),
        {"waves", "registers", "shared"},
        "threads=2048[^;]*; registers=300[^;]*; shared_bytes=1000000[^;]*; threads=2048: .* 64 warps of 304 [^;]*",
    ),
]

WRONG = [
    ("gfx950", launch(registers=-1, threads=64), "registers=-1 "),
    ("gfx950", launch(registers=8.0, threads=64), r"registers=8\.0 "),
    ("gfx950", launch(registers=True, threads=64), "registers=True "),
    ("gfx950", launch(registers="8", threads=64), "registers='8' "),
    ("gfx950", launch(registers=None, threads=64), "registers=None "),
    ("gfx950", launch(registers=8, threads=-64), "threads=-64 "),
    ("gfx950", launch(registers=8, threads=2**31), "threads=2147483648 "),
    ("gfx950", launch(registers=8, threads=64, accumulators=-2), "accumulators=-2 "),
    ("gfx950", launch(registers=8, threads=64, scalars=1.5), r"scalars=1\.5 "),
    ("gfx950", launch(registers=8, threads=64, shared_bytes=-4), "shared_bytes=-4 "),
    ("gfx950", launch(registers=8, threads=64, barriers=2), "barriers=2: .*exactly one"),
    ("gfx950", launch(registers=8, threads=64, barriers=0), "barriers=0: .*exactly one"),
    ("sm_90", launch(registers=8, threads=64, accumulators=4), "accumulators=4: .*no AccVGPRs"),
    ("sm_90", launch(registers=8, threads=64, scalars=16), "scalars=16: .*no SGPRs"),
    ("sm_90", launch(registers=8, threads=64, barriers=17), "barriers=17: .* 16 at most"),
    ("sm_90", launch(registers=8, threads=64, barriers=-1), "barriers=-1 "),
    (
        "gfx1100",
        launch(registers=8, threads=64),
        "unknown architecture 'gfx1100'.*gfx90a, gfx942, gfx950, sm_80.*sm_120",
    ),
    ("gfx908", launch(registers=8, threads=64), "unknown architecture 'gfx908'"),
    ("sm_75", launch(registers=8, threads=64), "unknown architecture 'sm_75'"),
]


def label(case):
    return f"{case[0]}-" + "-".join(f"{name}{value}" for name, value in case[1].items())


@pytest.mark.parametrize("case", GOLDEN, ids=label)
def test_golden(case):
    arch, arguments, groups, percent, limiters = case
    got = occupancy(arch, **arguments)
    assert got.groups_per_unit == groups
    assert got.fraction * 100 == pytest.approx(percent, rel=1e-12)
    assert set(got.limiters) == limiters
    assert got.reason is None
    assert occupancy_table(arch, **arguments) == groups


@pytest.mark.parametrize("case", REFUSED, ids=label)
def test_cannot_launch(case):
    arch, arguments, limiters, reason = case
    got = occupancy(arch, **arguments)
    assert (got.groups_per_unit, got.waves_per_unit, got.fraction) == (0, 0, 0.0)
    assert set(got.limiters) == limiters
    assert re.fullmatch(reason, got.reason), got.reason
    assert occupancy_table(arch, **arguments) == 0


@pytest.mark.parametrize("case", [*GOLDEN, *REFUSED], ids=label)
def test_words_are_the_vendors(case):
    """A CUDA reader knows blocks and warps, an AMD reader workgroups and waves; nobody a "group"."""
    got = occupancy(case[0], **case[1])
    said = f"{got.reason} {' '.join(got.limiter_words)}"
    others = r"wave|LDS|VGPR|group" if case[0].startswith("sm_") else r"warp|block|shared memory|\bgroup"
    assert not re.search(others, said), said
    assert len(got.limiter_words) == len(got.limiters)


def test_limiters_have_words():
    assert occupancy("sm_90", registers=32, threads=32).limiter_words == ("block slots",)
    assert occupancy("gfx950", registers=96, shared_bytes=32 * 1024, threads=256).limiter_words == ("LDS",)
    assert occupancy("gfx950", registers=128, shared_bytes=40_000, threads=256).limiter_words == (
        "vector registers",
        "LDS",
    )


@pytest.mark.parametrize("case", WRONG, ids=label)
def test_wrong_arguments(case):
    arch, arguments, message = case
    with pytest.raises(ValueError, match=message):
        occupancy(arch, **arguments)
    with pytest.raises(ValueError, match=message):
        occupancy_table(arch, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (launch(registers=np.array([8, -3]), threads=64), "registers=-3: "),
        (launch(registers=np.array([8.0, 9.0]), threads=64), "registers has dtype float64"),
        (launch(registers=np.array([True]), threads=64), "registers has dtype bool"),
        (launch(registers=np.array([8, 2**31]), threads=64), "registers=2147483648: "),
        (launch(registers=8, threads=64, accumulators=np.array([0, 7])), "accumulators=7: "),
        (launch(registers=8, threads=64, barriers=np.array([1, 17])), "barriers=17: "),
    ],
)
def test_wrong_arrays(arguments, message):
    with pytest.raises(ValueError, match=message):
        occupancy_table("sm_90", **arguments)


def test_every_limit_is_in_groups():
    """The example that shows them all: 4-wave groups on gfx950."""
    got = occupancy("gfx950", registers=106, accumulators=20, scalars=50, shared_bytes=32 * KIB, threads=256)
    # 106 -> 108, + 20 = 128 rows; 50 -> 64 + 16 SGPRs; 26 blocks
    assert got.allocated == {"registers": 128, "scalars": 80, "shared": 33_280}
    assert got.limits == {"waves": 8, "registers": 4, "scalars": 10, "shared": 4, "barriers": 16}
    assert (got.groups_per_unit, got.waves_per_unit, got.max_waves_per_unit) == (4, 16, 32)
    got = occupancy("sm_120", registers=33, shared_bytes=1000, threads=96, barriers=2)
    assert got.allocated == {"registers": 40, "shared": 2048}
    assert got.limits == {"waves": 16, "groups": 24, "registers": 16, "shared": 50, "barriers": 12}
    assert (got.groups_per_unit, got.waves_per_unit, got.max_waves_per_unit) == (12, 36, 48)


def test_limits_that_do_not_apply_are_absent():
    assert set(occupancy("gfx950", registers=8, threads=64).limits) == {"waves", "registers", "scalars"}
    assert set(occupancy("sm_89", registers=8, threads=64).limits) == {"waves", "groups", "registers", "shared"}
    assert "barriers" not in occupancy("sm_90", registers=8, threads=64, barriers=0).limits


def test_no_registers_cost_one_step():
    assert occupancy("gfx950", registers=0, threads=256).allocated == {"registers": 8, "scalars": 32, "shared": 0}
    assert occupancy("sm_90", registers=0, threads=128).allocated == {"registers": 8, "shared": 1024}


def test_ceilings():
    cdna = {1: 512, 2: 256, 3: 168, 4: 128, 5: 96, 6: 80, 7: 72, 8: 64}
    assert all(register_ceilings(arch) == cdna for arch in ("gfx90a", "gfx942", "gfx950"))
    ada = {1: 255, **{k: v for k, v in cdna.items() if k > 2}, 2: 255, 9: 56, 10: 48, 11: 40, 12: 40}
    assert register_ceilings("sm_89") == ada
    assert register_ceilings("sm_90") == {**ada, 13: 32, 14: 32, 15: 32, 16: 32}

    def largest(arch, count):
        return list(shared_ceilings(arch).values())[:count]

    assert largest("gfx950", 10) == [163840, 81920, 53760, 40960, 32000, 26880, 23040, 20480, 17920, 15360]
    assert largest("gfx942", 4) == [65536, 32768, 21504, 16384]
    assert largest("sm_90", 8) == [232448, 115712, 76800, 57344, 45568, 37888, 32256, 28160]
    assert [len(shared_ceilings(arch)) for arch in ("gfx950", "sm_86", "sm_90", "sm_120")] == [32, 16, 32, 24]


def test_only_two_whole_kibibyte_sizes_fall_below_plain_division():
    """Of 1 to 160 KiB with 256 threads on gfx950, 32 and 53 KiB are the ones where 1280-byte blocks cost a group."""
    kibibytes = np.arange(1, 161)
    groups = occupancy_table("gfx950", registers=8, shared_bytes=kibibytes * KIB, threads=256)
    assert kibibytes[groups != np.minimum(8, 160 // kibibytes)].tolist() == [32, 53]


def test_barriers_never_bind_alone_on_amd():
    registers, shared_bytes, threads = np.ix_([8, 64, 128], [0, 1280, 5120, 20480], np.arange(1, 1025))
    groups = occupancy_table("gfx950", registers=registers, shared_bytes=shared_bytes, threads=threads)
    waves = -(-threads // 64)
    assert (groups[:, :, waves.ravel() > 1] <= 32 // waves[:, :, waves.ravel() > 1]).all()
    assert groups[:, :, waves.ravel() == 2].max() == 16  # as many as there are barriers


def random_launches(arch: str, count: int) -> dict[str, np.ndarray]:
    """Half anything, half from the values where something happens; some of it cannot launch."""
    amd = DEVICES[arch].vendor == "AMD"
    rng = np.random.default_rng(sum(map(ord, arch)))
    ceilings = np.array([*shared_ceilings(arch).values()])
    edges = {
        "registers": np.concatenate([[0, 1, 255, 256, 257], *(np.arange(8, 264, 8) + d for d in (0, 1))]),
        "shared_bytes": np.concatenate([[0, 1], ceilings, ceilings + 1]),
        "threads": np.concatenate([[0, 1, 1024, 1025, 4096], *(np.arange(32, 1025, 32) + d for d in (0, 1))]),
    }
    if amd:
        edges["accumulators"] = np.array([0, 0, 1, 3, 4, 5, 44, 128, 255, 256, 257])
        edges["scalars"] = np.array([0, 16, 80, 81, 96, 97, 108, 109])
    else:
        edges["barriers"] = np.array([0, 1, 2, 3, 8, 16])
    launches = {}
    for name, values in edges.items():
        anything = rng.integers(0, values.max() + 1, count)
        launches[name] = np.where(rng.random(count) < 0.5, rng.choice(values, count), anything)
    return launches


@pytest.mark.parametrize("arch", DEVICES)
def test_table_gives_the_same_answers(arch):
    launches = random_launches(arch, 12_000)
    table = occupancy_table(arch, **launches)
    rows = [occupancy(arch, **dict(zip(launches, row))) for row in np.stack([*launches.values()], axis=1).tolist()]
    assert table.tolist() == [row.groups_per_unit for row in rows]
    assert 0 < (table == 0).mean() < 0.9
    for row in rows:
        assert (row.reason is None) == (row.groups_per_unit > 0)
        assert row.reason != ""
        assert row.groups_per_unit == min(row.limits.values())
        assert row.waves_per_unit <= row.max_waves_per_unit


def test_table_broadcasts():
    registers = np.array([64, 128], dtype=np.uint8)
    table = occupancy_table("gfx950", registers=registers[:, None], shared_bytes=[0, 32_000, 32 * KIB], threads=256)
    assert table.dtype == np.int64
    assert table.tolist() == [[8, 5, 4], [4, 4, 4]]
    assert occupancy_table("gfx950", registers=64, threads=np.int64(256)).shape == ()
    assert occupancy_table("sm_90", registers=np.zeros(0, int), threads=256).shape == (0,)


@pytest.mark.parametrize("arch", ["gfx950", "sm_90"])
def test_throughput(arch, report):
    """Printed, not asserted: a busy machine is not a wrong one. But so many answers are those of one launch each."""
    launches = random_launches(arch, 1_000_000)
    seconds = []
    for _ in range(3):
        start = time.process_time()
        table = occupancy_table(arch, **launches)
        seconds.append(time.process_time() - start)
    for place in range(0, 1_000_000, 9973):
        launch = {name: int(values[place]) for name, values in launches.items()}
        assert table[place] == occupancy(arch, **launch).groups_per_unit, launch
    report(f"occupancy_table, {arch}: {1 / min(seconds):.1f} million launches a second and core")
