"""The product by warpgroups against NumPy: small integers, so that every order of summing gives the same bits.

On the emulated GPU, where a copy comes as late as it may and a product reads shared memory when it is waited for
(`emulator/execute.cpp`), or on a GPU of compute capability 9.0.
"""

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install fastbp[cuda]")

from fastbp.kernels.cuda import driver, gemm, wgmma

from .test_gemm import check, runs

pytestmark = pytest.mark.skipif(
    not runs() or driver.compute_capability() != wgmma.CAPABILITY, reason="needs a GPU of compute capability 9.0"
)


def check_wgmma(trans, m, n, k, **options):
    check(trans, m, n, k, "float32", product=wgmma.gemm, **options)


@pytest.mark.parametrize("trans", gemm.TRANSPOSITIONS)
def test_full_tiles_and_tails(trans):
    k = (wgmma.STAGES + 1) * wgmma.TERMS + 3  # every place of the pipeline is used again
    check_wgmma(trans, wgmma.BM + 3, wgmma.BN + 5, k, beta=1, bias=True)


def test_blocks_go_from_tile_to_tile(monkeypatch):
    """Copies run ahead into the next tile; as if the GPU had fewer multiprocessors than there are tiles."""
    monkeypatch.setattr(driver, "multiprocessors", lambda: 2)
    check_wgmma("NN", 4 * wgmma.BM + 1, wgmma.BN + 1, wgmma.TERMS + 1)


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 3, 0), (1, 33, 17), (33, 1, 64), (0, 3, 2), (3, 0, 2)])
def test_narrow(shape):
    check_wgmma("NT", *shape, bias=True)


@pytest.mark.parametrize("trans", gemm.TRANSPOSITIONS)
def test_any_alignment(trans):
    check_wgmma(trans, 9, 70, 65, shift=1, bias=True)


def test_epilogues():
    check_wgmma("NN", 9, 7, 5, bias=True, epilogue="forward:silu")  # whose derivative needs what is before it
    check_wgmma("NT", 9, 7, 5, epilogue="backward:relu")


def test_chosen_where_it_is_asked_for(monkeypatch):
    for listed, expected in (("", False), ("wgmma", True)):
        monkeypatch.setenv("FASTBP_CUDA", listed)
        assert [wgmma.chosen(name, np.float32) for name in ("ieee", "tf32", "bf16")] == [False, False, expected]
        assert not wgmma.chosen("bf16", np.float64)
