"""What the experiment gemm_speed holds against float64, and what a machine without Triton is told. Nothing is timed."""

import pytest
import torch
from chipmath import matmul_gpu
from chipmath.crosscompile import CompilerMissing
from chipmath.experiments import gemm_routes, gemm_speed, quantizers
from chipmath.gpu import Gpu


@pytest.mark.parametrize("row", [0, 31, 63])
def test_a_product_that_is_wrong_in_one_row_is_not_timed(monkeypatch, row):
    true = matmul_gpu.plan

    def plan(a, b, route):
        multiply = true(a, b, "dequantize_cublas")

        def wrong():
            product = multiply()
            product[row] *= 1.5
            return product

        return wrong if route == "folded_cublas" else multiply

    monkeypatch.setattr(gemm_speed, "routes_of", lambda arch: ["folded_cublas"])
    monkeypatch.setattr(matmul_gpu, "plan", plan)
    method, rows = gemm_speed.rehearse(lambda *a: None)
    assert [each["route"] for each in rows] == [gemm_speed.REFERENCE]
    (why,) = method["left_out"].values()
    assert why.startswith("folded_cublas: relative error 0.0")


def test_rows_from_the_whole_matrix_are_checked():
    """64 of them, evenly, of a matrix that has more."""
    shape, checked = (640, 32, 128), []

    def note(name, candidate, rows, exact, k):
        checked.append(rows)
        return 0.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gemm_speed, "_checked", note)
        patch.setattr(gemm_speed, "routes_of", lambda arch: [])
        gemm_speed._candidates("cpu", "cpu", shape, with_tiles=False, tell=lambda text: None)
    assert [rows.tolist() for rows in checked] == [list(range(0, 640, 10))]


def test_the_time_of_a_conversion_is_told_beside_its_product(monkeypatch):
    asked = []

    def turns(candidates, stopwatch, *, rounds):
        asked.append((list(candidates), rounds))
        return {name: [0.25, 0.5, 4.0] for name in candidates}

    true = matmul_gpu.plan
    monkeypatch.setattr(matmul_gpu, "plan", lambda a, b, route: true(a, b, "dequantize_cublas"))
    monkeypatch.setattr(gemm_speed, "routes_of", lambda arch: ["folded_cublas", "dequantize_cublas"])
    monkeypatch.setattr(gemm_speed, "take_turns", turns)
    told = []
    _, rows = gemm_speed.rehearse(lambda done, total, text: told.append(text.rpartition(": ")[2]))
    assert {"operands", "folded_cublas", "dequantize_cublas"} <= set(told), "a page can give up before each"
    assert {row["route"]: row["conversion_s"] for row in rows} == {
        gemm_speed.REFERENCE: None,
        "folded_cublas": 0.5,
        "dequantize_cublas": None,
    }
    products, conversions = asked
    assert conversions == (["convert for folded_cublas"], gemm_speed.CONVERSION_ROUNDS)
    assert "convert for folded_cublas" not in products[0], "a light kernel would let the clock rise"


def test_a_route_that_the_installed_software_does_not_have_is_told_and_the_others_go_on(monkeypatch):
    """An MI300X with Triton 3.7, say."""
    true = matmul_gpu.plan

    def plan(a, b, route, **tile):
        if route == "dot_scaled":
            raise ValueError("route dot_scaled needs Triton 3.9 or later on gfx942, this is 3.7")
        return true(a, b, route)

    monkeypatch.setattr(matmul_gpu, "plan", plan)
    monkeypatch.setattr(gemm_speed, "routes_of", lambda arch: ["dot_scaled", "dequantize_cublas"])
    method, rows = gemm_speed.rehearse(lambda *a: None)
    assert set(method["left_out"].values()) == {"route dot_scaled needs Triton 3.9 or later on gfx942, this is 3.7"}
    assert "dot_scaled, 64 x 48 x 128" in method["left_out"]
    assert [each["route"] for each in rows] == [gemm_speed.REFERENCE, "dequantize_cublas"]


@pytest.mark.parametrize("experiment", [gemm_speed, quantizers])
def test_chips_without_a_record_are_refused_as_a_page_can_tell(experiment):
    card = Gpu("A Card", "NVIDIA", "sm_75", 80 << 30, "580.1", "CUDA 13.0")
    with pytest.raises(gemm_speed.ExperimentError, match=r"knows gfx90a, .*, not sm_75"):
        experiment.measure(card, True, lambda *a: None)


@pytest.mark.parametrize("route", gemm_routes.KERNEL_ROUTES)
def test_without_triton_the_compiler_is_said_to_be_missing(monkeypatch, route):
    """And not that some module cannot be imported."""

    def missing():
        raise CompilerMissing("no Triton: pip install triton")

    monkeypatch.setattr(gemm_routes, "find_triton", missing)
    monkeypatch.setattr(gemm_routes, "compile_triton", lambda *a, **k: pytest.fail("compiled without a compiler"))
    with pytest.raises(CompilerMissing, match="no Triton: pip install triton"):
        gemm_routes.compile_route("sm_90", route, (128, 128, 128), 8, 3)


def test_a_product_that_is_not_a_number_is_no_product():
    exact = torch.ones(2, 2, dtype=torch.float64)
    for wrong in (torch.nan, torch.inf, 1.01):
        with pytest.raises(gemm_speed.ExperimentError, match="it is not timed"):
            gemm_speed._checked("dot_scaled", lambda i, wrong=wrong: exact.float() * wrong, torch.arange(2), exact, 128)
