"""Every kernel assembles for every GPU without a spill, and the main loop of the product is made of multiply-adds."""

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install fastbp[cuda]")
pytest.importorskip("cuda.core", reason="needs the assembler: pip install fastbp[cuda]")

from fastbp.kernels import table
from fastbp.kernels.cuda import blocking, catalogue, driver, gemm

from . import machine_code

pytestmark = pytest.mark.skipif(driver.simulated, reason="the simulator makes no machine code")

CAPABILITIES = ((8, 0), (9, 0, "a"), (10, 0))
DTYPES = ("float32", "float64")
needs_disassembler = pytest.mark.skipif(
    machine_code.disassembler() is None, reason="needs nvdisasm: pip install nvidia-cuda-nvdisasm"
)


def architecture(capability):
    return "sm_" + "".join(map(str, capability))


each_capability = pytest.mark.parametrize("capability", CAPABILITIES, ids=architecture)
each_tile = pytest.mark.parametrize(
    ("dtype", "tile"),
    [
        pytest.param(dtype, tile, id=f"{dtype}-{tile.name}")
        for dtype in DTYPES
        for tile in blocking.TILES[np.dtype(dtype).itemsize]
    ],
)
REGISTERS = 65536  # of a multiprocessor
STATIC_SHARED = 48 * 1024  # the most a block has without asking
MULTIPROCESSOR_SHARED = 160 * 1024  # the least of these architectures


def assemble(kernel, signature, capability):
    cubin, report = machine_code.assemble(kernel, signature, capability)
    assert (report.stack, report.spill_stores, report.spill_loads) == (0, 0, 0), report
    return cubin, report


def product(dtype, layout, epilogue, tile, access="vectors", precision="ieee"):
    name = f"gemm {layout} {epilogue} {precision} {tile.name} {access}"
    return next((kernel, signature) for found, kernel, signature in gemm.kernels(dtype) if found == name)


# ---------------------------------------------------------------------------------------- the product
# Of the instructions of the main loop at least so many multiply and add; the others load panels and fragments (16
# bytes each), store panels, wait, and count. A smaller tile has fewer multiply-adds for what it loads.
SHARE = {
    "float32": {"large": 0.84, "medium": 0.80, "small": 0.72},
    "float64": {"medium": 0.68, "small": 0.58},
}


@needs_disassembler
@each_capability
@each_tile
@pytest.mark.parametrize("layout", gemm.LAYOUTS)
def test_product(tmp_path, layout, dtype, tile, capability):
    cubin, report = assemble(*product(dtype, layout, "none", tile), capability)
    assert report.registers * tile.threads * tile.blocks <= REGISTERS
    assert report.shared <= STATIC_SHARED
    assert report.shared * tile.blocks <= MULTIPROCESSOR_SHARED

    loop = machine_code.main_loop(machine_code.disassemble(cubin, tmp_path))
    width, terms = 16 // np.dtype(dtype).itemsize, tile.bk
    opcode = {"float32": "FFMA", "float64": "DFMA"}[dtype]
    panels = (tile.bm + tile.bn) * tile.bk // (width * tile.threads)
    assert loop[opcode] == tile.tm * tile.tn * terms
    assert loop["LDS.128"] == (tile.tm + tile.tn) // width * terms
    assert loop["LDG.E.128"] == panels
    narrow = [name for name in loop if name.startswith(("LD", "ST")) and "128" not in name and "LDC" not in name]
    assert set(narrow) <= {"STS" if dtype == "float32" else "STS.64"}, narrow  # of a panel that is turned
    assert loop[opcode] >= SHARE[dtype][tile.name] * loop.total(), loop


@needs_disassembler
@each_capability
@pytest.mark.parametrize("tile", blocking.MATRIX_TILES, ids=lambda tile: tile.name)
@pytest.mark.parametrize(
    ("precision", "opcode", "terms"), [("tf32", "HMMA.1688.F32.TF32", 8), ("bf16", "HMMA.16816.F32.BF16", 16)]
)
def test_product_by_tensor_cores(tmp_path, precision, opcode, terms, tile, capability):
    for layout in gemm.LAYOUTS:
        cubin, report = assemble(*product("float32", layout, "none", tile, precision=precision), capability)
        assert report.registers * tile.threads * tile.blocks <= REGISTERS
        assert report.shared <= STATIC_SHARED
        loop = machine_code.main_loop(machine_code.disassemble(cubin, tmp_path))
        turns, rest = divmod(loop[opcode], tile.tm // 2 * tile.tn // 2 * tile.bk // terms)
        assert turns >= 1, loop  # the assembler unrolls small loops
        assert rest == 0, loop
        # Beside the multiply-adds there is one load a register of theirs, or two that are packed into it.
        assert sum(count for name, count in loop.items() if name.startswith("LDS")) == (
            turns * (tile.tm + tile.tn // 2) * tile.bk // 4
        )


@each_tile
@pytest.mark.parametrize("layout", gemm.LAYOUTS)
def test_product_of_any_alignment(layout, dtype, tile):
    assemble(*product(dtype, layout, "none", tile, "elements"), (9, 0, "a"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [name for name in table.ACTIVATIONS if name != "identity"])
def test_product_with_activation(activation, dtype):
    tiles = blocking.TILES[np.dtype(dtype).itemsize]
    tile = tiles[table.ACTIVATIONS.index(activation) % len(tiles)]
    assemble(*product(dtype, "NN", f"forward:{activation}", tile), (9, 0, "a"))
    assemble(*product(dtype, "NT", f"backward:{activation}", tile), (9, 0, "a"))


# ------------------------------------------------------------------------------------- the other kernels
OTHERS = (
    [kernel for kernel in catalogue.kernels() if not kernel.name.startswith("gemm")] if not driver.simulated else []
)


@each_capability
@pytest.mark.parametrize("kernel", OTHERS, ids=lambda kernel: f"{kernel.name} {kernel.dtype}")
def test_kernel(kernel, capability):
    assemble(kernel.function, kernel.signature, capability)
