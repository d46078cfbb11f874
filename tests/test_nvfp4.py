"""NVFP4, by hand and by its published quality."""

import pytest
import torch
from chipmath.nvfp4 import BITS_PER_VALUE, nvfp4_roundtrip
from chipmath.quantize import sqnr_db


def test_two_blocks_worked_by_hand():
    # Largest 2688 = 448 * 6: the tensor's scale is 1. Block 0 wants 2688 / 6 = 448, block 1 wants 17 / 6 = 2.833, which
    # E4M3 rounds to 2.75: 17 / 2.75 = 6.18 becomes 6, or 16.5 back; 4 / 2.75 = 1.4545 becomes 1.5, or 4.125.
    x = torch.zeros(2, 16)
    x[0, :3] = torch.tensor([2688.0, -448.0, 100.0])
    x[1, :2] = torch.tensor([17.0, 4.0])
    back = nvfp4_roundtrip(x)
    assert back[0, :3].tolist() == [2688.0, -448.0, 0.0]
    assert back[1, :2].tolist() == [16.5, 4.125]
    assert not back[:, 3:].any()


def test_zeros_stay_zeros():
    assert not nvfp4_roundtrip(torch.zeros(4, 32)).any()


def test_a_block_below_the_smallest_scale_is_flushed():
    x = torch.ones(2, 16)
    x[1] = 1e-9
    assert nvfp4_roundtrip(x)[1].tolist() == [0.0] * 16


def test_gaussian_data_come_back_as_published():
    # arXiv 2510.25602, fig. 4b: 20.35 dB on tensors that a Hadamard rotation has made nearly Gaussian
    x = torch.randn(512, 1024, generator=torch.Generator().manual_seed(0))
    assert sqnr_db(x, nvfp4_roundtrip(x)) == pytest.approx(20.35, abs=0.15)
    assert BITS_PER_VALUE == 4.5


@pytest.mark.parametrize("special", [torch.nan, torch.inf])
def test_a_tensor_that_holds_nan_or_inf_is_nan(special):
    x = torch.ones(2, 16)
    x[0, 3] = special
    assert nvfp4_roundtrip(x).isnan().all()


def test_shapes_and_gradients():
    assert nvfp4_roundtrip(torch.empty(3, 0)).shape == (3, 0)
    assert nvfp4_roundtrip(torch.empty(0, 16)).shape == (0, 16)
    x = torch.ones(2, 3, 16, requires_grad=True)
    assert torch.equal(nvfp4_roundtrip(x), torch.ones(2, 3, 16))
    assert not nvfp4_roundtrip(x).requires_grad


@pytest.mark.parametrize(
    ("error", "message", "x"),
    [
        (TypeError, "got torch.float16", torch.zeros(16, dtype=torch.float16)),
        (TypeError, r"got a list: \[1.0\]", [1.0]),
        (ValueError, r"a multiple of 16, got shape \(24,\)", torch.zeros(24)),
        (ValueError, r"a multiple of 16, got shape \(\)", torch.tensor(1.0)),
    ],
)
def test_wrong_input_is_refused(error, message, x):
    with pytest.raises(error, match=message):
        nvfp4_roundtrip(x)
