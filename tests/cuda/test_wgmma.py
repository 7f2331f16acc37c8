"""The product by warpgroups against NumPy: small integers, so that every order of summing gives the same bits.

On the emulated GPU, where a copy comes as late as it may and a product reads shared memory when it is waited for
(`emulator/execute.cpp`), or on a GPU of compute capability 9.0.
"""

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install fastbp[cuda]")

from fastbp.kernels.cuda import driver, gemm, wgmma

from .test_gemm import check, check_high_and_low_parts, check_order_of_high_and_low_parts, check_rounding, runs

pytestmark = pytest.mark.skipif(
    not runs() or driver.compute_capability() != wgmma.CAPABILITY, reason="needs a GPU of compute capability 9.0"
)


@pytest.fixture(params=wgmma.FORMS)
def precision(request):
    return request.param


def check_wgmma(precision, trans, m, n, k, **options):
    check(trans, m, n, k, "float32", product=wgmma.gemm, precision=precision, **options)


@pytest.mark.parametrize("trans", gemm.TRANSPOSITIONS)
def test_full_tiles_and_tails(precision, trans):
    k = (wgmma.STAGES + 1) * wgmma.FORMS[precision].terms + 3  # every place of the pipeline is used again
    check_wgmma(precision, trans, wgmma.BM + 3, wgmma.BN + 5, k, beta=1, bias=True)


def test_blocks_go_from_tile_to_tile(precision, monkeypatch):
    """Copies run ahead into the next tile; as if the GPU had fewer multiprocessors than there are tiles."""
    monkeypatch.setattr(driver, "multiprocessors", lambda: 2)
    check_wgmma(precision, "NN", 4 * wgmma.BM + 1, wgmma.BN + 1, wgmma.FORMS[precision].terms + 1)


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 3, 0), (1, 33, 17), (33, 1, 64), (0, 3, 2), (3, 0, 2)])
def test_narrow(precision, shape):
    check_wgmma(precision, "NT", *shape, bias=True)


@pytest.mark.parametrize("trans", gemm.TRANSPOSITIONS)
def test_any_alignment(precision, trans):
    check_wgmma(precision, trans, 9, 70, 65, shift=1, bias=True)


def test_epilogues(precision):
    # The derivative of SiLU needs what is before it.
    check_wgmma(precision, "NN", 9, 7, 5, bias=True, epilogue="forward:silu")
    check_wgmma(precision, "NT", 9, 7, 5, epilogue="backward:relu")


@pytest.mark.filterwarnings("ignore:overflow encountered")  # the largest number is rounded up to infinity
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_factors_are_rounded(precision):
    check_rounding(precision, wgmma.gemm)


def test_factors_of_two_bfloat16_numbers():
    check_high_and_low_parts(wgmma.gemm)
    check_order_of_high_and_low_parts(wgmma.gemm)


def test_chosen_where_it_is_asked_for(precision, monkeypatch):
    for listed in ("", "wgmma"):
        monkeypatch.setenv("FASTBP_CUDA", listed)
        assert wgmma.chosen(precision, np.float32) == bool(listed)
        assert not wgmma.chosen("ieee", np.float32)
        assert not wgmma.chosen(precision, np.float64)
