"""What Numba is given to do for a kernel, as counts; and that it is left as it was. Needs no GPU."""

import gc
import re

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install fastbp[cuda]")

from fastbp.kernels.cuda import blocking, cluster, driver, gemm, losses, optimizers

pytestmark = pytest.mark.skipif(driver.simulated, reason="the simulator compiles nothing")

DTYPE = np.dtype(np.float32)
LABELS = np.dtype(np.int64)


def given(kernel):
    """How many functions NVVM is given for a kernel, and how many instructions of LLVM."""
    from fastbp.kernels.cuda.machine_code import compiled

    from .machine_code import as_if_on

    with as_if_on((9, 0, "a")):
        text = compiled(kernel).library.get_llvm_str()
    defined = re.findall(r"^define .*?^}", text, re.MULTILINE | re.DOTALL)
    return len(defined), sum(line.startswith("  ") for body in defined for line in body.splitlines())


# Each is some percent above what it was when this was written; most of the seconds of a first use follow from these.
MOST = {
    "cluster ieee": (68, 17_200),
    "cluster tf32": (105, 19_900),
    "product": (35, 9_700),
    "loss": (25, 3_300),
    "optimizer": (8, 700),
}


def kernel_of(name):
    kind, _, precision = name.partition(" ")
    if kind == "cluster":
        return cluster.cluster_kernel("cross_entropy", "adam", ("identity", "relu"), precision, DTYPE, LABELS)
    if kind == "product":
        return gemm.gemm_kernel("NN", DTYPE, "forward:relu", "ieee", blocking.tiles_of(4, "ieee")[0])
    return losses.loss_kernel("cross_entropy", DTYPE) if kind == "loss" else optimizers.optimizer_kernel("adam", DTYPE)


@pytest.mark.parametrize("name", MOST)
def test_a_kernel_is_few_functions_and_instructions(name):
    functions, instructions = given(kernel_of(name))
    assert (functions <= MOST[name][0], instructions <= MOST[name][1]) == (True, True), (functions, instructions)


def test_numba_is_left_as_it_was():
    """Also by a kernel that cannot be compiled, and where garbage is not collected."""
    from fastbp.kernels.cuda.front_end import front_end, replacements

    def state():
        return [getattr(place, name) for place, name, _ in replacements()] + [gc.isenabled()]

    for collects in (gc.enable, gc.disable):
        collects()
        before = state()
        try:
            with front_end():
                assert not gc.isenabled()
                assert all(theirs != ours for theirs, ours in zip(before[:-1], state()[:-1], strict=True))
            assert state() == before
            with pytest.raises(ZeroDivisionError), front_end():
                1 / 0  # noqa: B018 - for its error
            assert state() == before
        finally:
            gc.enable()
