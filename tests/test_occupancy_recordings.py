"""What the article on occupancy shows as compiled, against the model and against answers worked by hand."""

import pytest
from chipmath.crosscompile import CompilerMissing
from chipmath.devices import device
from chipmath.experiments import ExperimentError, llvm_23, llvm_versions, named_barriers, one_equation
from chipmath.occupancy import occupancy
from chipmath.recordings import newest


@pytest.mark.parametrize(("arch", "most"), [("gfx950", 512), ("sm_90", 255)])
def test_one_equation_holds_at_every_register_count(arch, most):
    unit = device(arch)
    rows = newest("one_equation").select(arch=arch)
    assert [row["registers"] for row in rows] == list(range(1, most + 1))
    for row in rows:
        registers = row["registers"]
        rounded_up = 8 * -(-registers // 8)
        assert row["waves_per_simd"] == min(unit.max_waves // 4, 512 // rounded_up)
        split = {"registers": registers}
        if registers > 256:
            split = {"registers": 256, "accumulators": registers - 256}
        model = occupancy(arch, **split, threads=4 * unit.wave_lanes)
        assert row["waves_per_simd"] == model.groups_per_unit


# VGPRs, AccVGPRs, SGPRs, LDS bytes, threads -> waves per SIMD by LLVM 22 and 24, from their rules by hand
LLVM = {
    (96, 0, 32, 32768, 256): (5, 4),  # 163840 / 32768; 128 blocks / 26 a group
    (16, 0, 32, 32000, 256): (5, 5),  # 25 blocks
    (16, 0, 32, 32001, 256): (5, 4),
    (16, 0, 32, 54272, 256): (3, 2),  # 43 blocks
    (32, 0, 92, 0, 256): (8, 7),  # up to 100: 8; 800 / (96 + 16)
    (32, 0, 104, 0, 256): (7, 6),  # 800 / (112 + 16)
    (125, 3, 32, 0, 256): (3, 3),  # 128 + 3 -> 136 rows
    (32, 0, 32, 16384, 128): (5, 5),  # 10 or 9 groups of 2 waves over 4 SIMDs, rounded up
    (32, 0, 32, 0, 320): (8, 8),  # 6 groups of 5 waves are 7.5 a SIMD, rounded up
    (32, 0, 32, 0, 768): (6, 6),
    (88, 0, 32, 0, 512): (5, 5),  # 2 groups of 8 waves would be 4
    (240, 0, 32, 0, 1024): (2, 2),  # cannot launch
}


def test_llvm_versions_follow_their_rules():
    rows = newest("llvm_versions").select()
    answers = {(row["llvm"], *(row[name] for name in llvm_versions.LAUNCH)): row["waves_per_simd"] for row in rows}
    assert answers == {(llvm, *ask): waves for ask, both in LLVM.items() for llvm, waves in zip(("22", "24"), both)}


def test_llvm_24_is_the_model_where_a_group_is_a_wave_on_every_simd():
    for row in newest("llvm_versions").select(llvm="24", threads=256):
        launch = {name: row[name] for name in llvm_versions.LAUNCH}
        assert row["waves_per_simd"] == occupancy("gfx950", **launch).groups_per_unit


# resource, amount -> waves per SIMD without and with blocks of 1280 bytes and the trap handler's 16 SGPRs, by hand
LEARNT = {
    ("LDS", 32_000): (5, 5),  # 25 blocks of 128
    ("LDS", 32_001): (5, 4),
    ("LDS", 32_768): (5, 4),  # 26 blocks
    ("LDS", 54_272): (3, 2),  # 43 blocks
    ("SGPRs", 64): (8, 8),
    ("SGPRs", 84): (8, 7),  # 800 / (96 + 16)
}


@pytest.mark.parametrize("release", llvm_23.RELEASES, ids=" ".join)
def test_release_23_has_the_rules_of_24_and_its_snapshot_those_of_22(release):
    llvm, read = release
    rows = newest("llvm_23").select(llvm=llvm, read=read)
    answers = {(row["resource"], row["amount"]): row["waves_per_simd"] for row in rows}
    assert answers == {ask: both[llvm in ("23.1", "24")] for ask, both in LEARNT.items()}
    wanted = {"22": " 22.", "23 snapshot": "LLVM 23.0.0git", "23.1": "LLVM 23.1.", "24": "LLVM 24."}[llvm]
    assert all(wanted in row["compiler"] for row in rows)


def test_another_llvm_does_not_pass_for_23(monkeypatch, tmp_path):
    monkeypatch.setenv("LLVM_23", str(tmp_path))  # nothing there: Python finds its own Triton, if it has one
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton/__init__.py").write_text("")
    (tmp_path / "triton/_C.py").write_text(
        "class libtriton:\n    __file__ = __file__\n    class llvm:\n"
        "        init_targets = staticmethod(lambda: None)\n        translate_to_asm = staticmethod(lambda *_: '')\n"
        "VERSION = 'LLVM version 24.0.0git'\n"
    )
    (tmp_path / "triton-3.9.0.dist-info").mkdir()
    (tmp_path / "triton-3.9.0.dist-info/METADATA").write_text("Name: triton\nVersion: 3.9.0\n")
    with pytest.raises(CompilerMissing, match=r"triton there is LLVM 24.0.0git, in Triton 3.9.0"):
        llvm_23._elsewhere("", "triton", "gfx950")


def test_without_a_folder_llvm_23_is_missing(monkeypatch):
    monkeypatch.delenv("LLVM_23", raising=False)
    with pytest.raises(CompilerMissing, match="LLVM_23 names no folder"):
        llvm_23.compile_case("gfx950", "23.1", "noted", "LDS", 32_768)


@pytest.mark.parametrize("arch", named_barriers.ARCHS)
def test_one_named_barrier_books_all_below_it(arch):
    booked = {row["number"]: row["barriers"] for row in newest("named_barriers").select(arch=arch)}
    assert booked == {"0": 1, "1": 2, "3": 4, "7": 8, "15": 16, named_barriers.RUN_TIME: 16}


# Blocks of 64 threads per SM: by blocks (or, on sm_120, warps) and then by barriers, by hand
@pytest.mark.parametrize(("arch", "blocks"), [("sm_90", (32, 8, 4)), ("sm_120", (24, 3, 1))])
def test_a_block_that_books_barriers_leaves_fewer(arch, blocks):
    rows = newest("named_barriers")
    got = tuple(rows.cell("groups_per_unit", arch=arch, number=n) for n in ("0", "7", named_barriers.RUN_TIME))
    assert got == blocks


def test_fp8_mma_is_fp16_where_the_chip_lacks_it():
    taken = newest("fp8_mma")
    for row in taken.select(operands="e4m3"):
        native = row["arch"] in ("sm_89", "sm_120")
        assert row["matrix_opcodes"].startswith("QMMA" if native else "HMMA")
        # 16x8x32 is two of 16x8x16; every operand register holds 4 codes, unpacked in pairs
        assert (row["matrix_instructions"], row["unpack_instructions"]) == ((1, 0) if native else (2, 12))
    assert {row["matrix_opcodes"] for row in taken.select(operands="f16")} == {"HMMA.16816.F32"}


@pytest.mark.parametrize("by", ["by_clang", "by_triton"])
def test_a_kernel_that_takes_something_else_is_refused(monkeypatch, by):
    text = "; NumVgprs: 97\n; NumAgprs: 0\n; TotalNumSgprs: 32\n; LDSByteSize: 32768\n; Occupancy: 4\n"
    monkeypatch.setattr(llvm_versions, by, lambda ir, arch: ("clang 22", text))
    launch = dict(zip(llvm_versions.LAUNCH, (96, 0, 32, 32768, 256)))
    with pytest.raises(ExperimentError, match="taken"):
        llvm_versions.compile_case("gfx950", {"by_clang": "22", "by_triton": "24"}[by], **launch)


def test_registers_that_were_not_taken_are_refused(monkeypatch):
    class Other:
        registers, accumulators, compiler_waves_per_simd, compiler = 95, 0, 5, "clang 22"

    monkeypatch.setattr(one_equation, "compile_hip", lambda *_: Other)
    with pytest.raises(ExperimentError, match="96 registers asked for"):
        one_equation.compile_case("gfx950", 96)
