"""The occupancy model against two programs that we did not write: AMD's compiler and NVIDIA's cuda_occupancy.h."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from chipmath.devices import DEVICES
from chipmath.occupancy import occupancy, occupancy_table, shared_ceilings
from oracles import llvm_amdgpu

ORACLES = Path(__file__).parent / "oracles"


def around(values, spread=1) -> list[int]:
    return sorted({max(value + offset, 0) for value in values for offset in range(-spread, spread + 1)})


# AMD: the "; Occupancy:" line of LLVM

KERNELS_PER_MODULE = 250


def amd_kernels(arch: str, random_kernels: int) -> list[dict[str, int]]:
    """Every register count alone, every cliff of LDS, and random mixtures."""
    base = {"vgprs": 8, "accvgprs": 0, "sgprs": 0, "shared_bytes": 16, "threads": 256}
    kernels = [{**base, "vgprs": count} for count in range(1, 257)]
    kernels += [{**base, "sgprs": count} for count in range(1, 103)]
    some_vgprs = (1, 4, 5, 13, 125, 252, 253, 256)
    kernels += [{**base, "vgprs": v, "accvgprs": a} for v in some_vgprs for a in range(1, 257, 5)]
    sizes = [size for size in around(shared_ceilings(arch).values()) if size]
    kernels += [{**base, "shared_bytes": size, "threads": t} for size in sizes for t in (64, 128, 256, 320, 512, 1024)]
    rng = np.random.default_rng(0)
    biggest = shared_ceilings(arch)[1]
    kernels += [
        {
            "vgprs": int(rng.integers(1, 257)),
            "accvgprs": int(rng.integers(0, 257) * rng.integers(0, 2)),
            "sgprs": int(rng.integers(0, 103)),
            "shared_bytes": int(rng.integers(1, biggest // rng.choice([1, 4, 16]) + 1)),
            "threads": int(rng.integers(1, 1025)),
        }
        for _ in range(random_kernels)
    ]
    return kernels


def compile_amd(arch: str, kernels: list[dict[str, int]]) -> tuple[str, np.ndarray]:
    """LLVM's version, and a column a kernel: occupancy, vector registers, scalar registers, LDS bytes."""
    chunks = [kernels[start : start + KERNELS_PER_MODULE] for start in range(0, len(kernels), KERNELS_PER_MODULE)]
    modules = [(arch, "".join(llvm_amdgpu.kernel(i, **k) for i, k in enumerate(chunk))) for chunk in chunks]
    version, assembly = llvm_amdgpu.assemble(modules)
    names = ("Occupancy", "TotalNumVgprs", "TotalNumSgprs", "LDSByteSize")
    return version, np.array([[v for text in assembly for v in llvm_amdgpu.comments(text, name)] for name in names])


def check_against_llvm(arch: str, random_kernels: int, report) -> None:
    kernels = amd_kernels(arch, random_kernels)
    version, (llvm_waves, llvm_vgprs, sgprs, lds) = compile_amd(arch, kernels)
    asked = {name: np.array([kernel[name] for kernel in kernels]) for name in kernels[0]}
    assert llvm_waves.shape == asked["threads"].shape
    assert (lds == asked["shared_bytes"]).all()

    registers = {"registers": asked["vgprs"], "accumulators": asked["accvgprs"], "scalars": sgprs}
    # A group of 256 threads is one wave on each SIMD, so its groups per CU are waves per SIMD.
    by_registers = occupancy_table(arch, **registers, threads=256)
    by_shared = occupancy_table(arch, registers=1, shared_bytes=asked["shared_bytes"], threads=asked["threads"])
    waves = -(-asked["threads"] // 64)

    # Difference 1: LLVM lets registers admit part of a group, and rounds what shared memory admits up to whole waves.
    expected = np.minimum(by_registers, -(-by_shared * waves // 4))
    # Difference 2: LLVM says 1 where nothing can launch.
    unlaunchable = expected == 0
    expected = np.maximum(expected, 1)
    wrong = np.flatnonzero(llvm_waves != expected)
    assert wrong.size == 0, [(kernels[i], int(llvm_waves[i]), int(expected[i])) for i in wrong[:5]]

    allocated = np.array(
        [
            occupancy(arch, registers=v, accumulators=a, threads=64).allocated["registers"]
            for v, a in zip(asked["vgprs"], asked["accvgprs"])
        ]
    )
    assert (allocated == -(-llvm_vgprs // 8) * 8).all()

    # The model itself, whole groups only, stays at or below the compiler, and equal for one-wave-per-SIMD groups.
    groups = occupancy_table(arch, **registers, shared_bytes=asked["shared_bytes"], threads=asked["threads"])
    assert (groups * waves <= 4 * llvm_waves).all()
    four_waves = (waves == 4) & ~unlaunchable
    assert (groups[four_waves] == llvm_waves[four_waves]).all()
    whole_groups = int((-(-groups * waves // 4) < llvm_waves).sum())
    report(
        f"LLVM {version}, {arch}: {len(kernels)} kernels, 0 unexplained differences; {whole_groups} lose waves to "
        f"whole groups, {int((groups == 0).sum())} cannot launch (LLVM prints at least 1)"
    )


@pytest.mark.parametrize("arch", ["gfx90a", "gfx942", "gfx950"])
def test_llvm_occupancy(arch, report):
    check_against_llvm(arch, 1_400, report)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["gfx90a", "gfx942", "gfx950"])
def test_llvm_occupancy_many(arch, report):
    check_against_llvm(arch, 10_000, report)


def test_llvm_does_not_see_dynamic_lds(report):
    """Difference 3: LDS whose size the launch decides is 0 bytes to the compiler, so its line is too high."""
    ir = """
    @dynamic = external addrspace(3) global [0 x i8], align 16
    define amdgpu_kernel void @k0() { call void asm sideeffect "", "s"(ptr addrspace(3) @dynamic) ret void }
    """
    _, (assembly,) = llvm_amdgpu.assemble([("gfx950", ir)])
    assert llvm_amdgpu.comments(assembly, "LDSByteSize") == [0]
    assert llvm_amdgpu.comments(assembly, "Occupancy") == [8]
    assert occupancy("gfx950", registers=8, shared_bytes=68_576, threads=256).groups_per_unit == 2


# NVIDIA: cuda_occupancy.h

# Typed from the CUDA Programming Guide, apart from our records, so that a wrong record shows:
# arch -> compute capability, threads per SM, shared memory per SM, opt-in per block, reserved per block
NVIDIA = {
    "sm_80": (8, 0, 2048, 167_936, 166_912, 1024),
    "sm_86": (8, 6, 1536, 102_400, 101_376, 1024),
    "sm_89": (8, 9, 1536, 102_400, 101_376, 1024),
    "sm_90": (9, 0, 2048, 233_472, 232_448, 1024),
    "sm_100": (10, 0, 2048, 233_472, 232_448, 1024),
    "sm_103": (10, 3, 2048, 233_472, 232_448, 1024),
    "sm_120": (12, 0, 1536, 102_400, 101_376, 1024),
}
ANSWER = ("status", "blocks", "waves", "groups", "registers", "shared", "barriers", "factors")
FACTOR_BITS = {"waves": 1, "registers": 2, "shared": 4, "groups": 8, "barriers": 16}  # cudaOccLimitingFactor
INT_MAX = 2**31 - 1


def header() -> Path:
    """cuda_occupancy.h from the CUDA runtime's wheel, the Triton wheel or a CUDA toolkit; the first that is there."""
    nvcc = shutil.which("nvcc")
    folders = [
        *(Path(root, "nvidia/cu13/include") for root in sys.path),
        *(Path(root, "triton/backends/nvidia/include") for root in sys.path),
        *([Path(nvcc).resolve().parent.parent / "include"] if nvcc else []),
        Path("/usr/local/cuda/include"),
    ]
    for folder in folders:
        if (folder / "cuda_occupancy.h").exists():
            return folder / "cuda_occupancy.h"
    pytest.skip("no cuda_occupancy.h: pip install nvidia-cuda-runtime==13.0.96")


@pytest.fixture(scope="module")
def ask_header(tmp_path_factory):
    gxx = shutil.which("g++")
    if gxx is None:
        pytest.skip("no g++ to compile cuda_occupancy.h with")
    driver = tmp_path_factory.mktemp("driver") / "driver"
    source = ORACLES / "cuda_occupancy_driver.cpp"
    subprocess.run([gxx, "-O2", "-w", f"-I{header().parent}", source, "-o", driver], check=True)

    def ask(arch: str, launches: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        columns = [np.full(launches["threads"].shape, value) for value in NVIDIA[arch]]
        static = np.minimum(launches["shared_bytes"] // 3, 48 * 1024)  # ptxas allows no more; the sum is what counts
        columns += [launches["registers"], static, launches["shared_bytes"] - static]
        columns += [launches["threads"], launches["barriers"]]
        rows = np.stack(columns, axis=1).astype(np.int32)
        done = subprocess.run([driver], input=rows.tobytes(), capture_output=True, check=True)
        answers = np.frombuffer(done.stdout, np.int32).reshape(-1, len(ANSWER))
        assert len(answers) == len(rows)
        return dict(zip(ANSWER, answers.T))

    return ask


def nvidia_launches(arch: str, random_launches: int) -> dict[str, np.ndarray]:
    """Every cliff of each resource against small and large values of the others, then random mixtures."""
    boundary = np.meshgrid(
        [0, 1, 8, 9, 32, 33, 40, 41, 64, 65, 80, 81, 88, 96, 97, 128, 129, 168, 169, 255, 256, 257],
        [0, 47 * 1024, 47 * 1024 + 1, 48 * 1024, 48 * 1024 + 1, *around(shared_ceilings(arch).values())],
        [0, 1, 32, 33, 64, 128, 160, 640, 672, 1024, 1025],
        [0, 1, 8, 16],
        indexing="ij",
    )
    rng = np.random.default_rng(int(arch[3:]))
    random = (
        rng.integers(1, 256, random_launches),
        rng.integers(0, 240_000, random_launches) // rng.choice([1, 4, 16, 64], random_launches),
        rng.integers(1, 1025, random_launches),
        rng.choice([0, 1, 1, 1, 2, 3, 5, 8, 16], random_launches),
    )
    names = ("registers", "shared_bytes", "threads", "barriers")
    return {name: np.concatenate([b.ravel(), r]) for name, b, r in zip(names, boundary, random)}


def check_against_header(arch: str, random_launches: int, ask, report) -> None:
    launches = nvidia_launches(arch, random_launches)
    answers = ask(arch, launches)
    table = occupancy_table(arch, **launches)

    # Difference 1: the header calls a block without threads invalid input; we say that it cannot launch.
    empty = launches["threads"] == 0
    assert (answers["status"] == empty).all()
    # Difference 2: the header lets 256 registers through; the instruction set ends at 255.
    register_256 = launches["registers"] == 256
    ours = ~empty & ~register_256
    assert (table[~ours] == 0).all()
    wrong = np.flatnonzero(ours & (table != answers["blocks"]))
    assert wrong.size == 0, [({k: int(v[i]) for k, v in launches.items()}, int(table[i])) for i in wrong[:5]]

    quirks = 0
    for i in np.flatnonzero(ours)[:: max(1, ours.sum() // 20_000)]:
        launch = {name: int(column[i]) for name, column in launches.items()}
        answer = {name: int(column[i]) for name, column in answers.items()}
        got = occupancy(arch, **launch)
        assert got.groups_per_unit == answer["blocks"], launch
        for name in FACTOR_BITS:
            # Difference 3: without registers the header has no register limit; we charge one step, which never binds.
            if not (name == "registers" and launch["registers"] == 0):
                assert got.limits.get(name, INT_MAX) == answer[name], (name, launch)
        bits = sum(FACTOR_BITS[name] for name in got.limiters)
        # Difference 4: where barriers bind, the header keeps the bits of what would have bound without them.
        if got.limiters == ("barriers",):
            quirks += answer["factors"] != bits
            assert answer["factors"] & bits
        else:
            assert answer["factors"] == bits, launch
    report(
        f"{'/'.join(header().parts[-4:])}, {arch}: {len(table)} launches, 0 unexplained differences; "
        f"{int(register_256.sum())} with 256 registers, {int(empty.sum())} without threads, "
        f"{quirks} where the header also names a limiter that barriers have overtaken"
    )


@pytest.mark.parametrize("arch", NVIDIA)
def test_cuda_occupancy_header(arch, ask_header, report):
    check_against_header(arch, 10_000, ask_header, report)


@pytest.mark.slow
@pytest.mark.parametrize("arch", NVIDIA)
def test_cuda_occupancy_header_many(arch, ask_header, report):
    check_against_header(arch, 1_000_000, ask_header, report)


def test_carveouts_are_those_of_the_header():
    """cudaOccAlignUpShmemSizeVoltaPlus rounds up to 8 KiB, 16 KiB, …: an ascending run for each family of chips."""
    body = header().read_text().partition("cudaOccAlignUpShmemSizeVoltaPlus")[2]
    runs = [[0]]
    for size in map(int, re.findall(r"\*shMemSize = (\d+) \* 1024;", body)):
        runs = [*runs, [0]] if size < runs[-1][-1] else runs
        runs[-1].append(size)
    for arch in NVIDIA:
        assert list(DEVICES[arch].carveouts_kib) in runs, arch


def test_register_refusal_is_implied():
    """The refusal of large blocks in cudaOccMaxBlocksPerSMRegsLimit follows from filling each sub-partition."""
    registers, warps = np.meshgrid(np.arange(1, 256), np.arange(1, 33), indexing="ij")
    allocated_per_warp = -(-registers * 32 // 256) * 256
    refused = allocated_per_warp * (-(-warps // 4) * 4) > 65_536
    groups = occupancy_table("sm_90", registers=registers, threads=warps * 32)
    assert ((groups == 0) == refused).all()
