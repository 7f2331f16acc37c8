"""Every kernel assembles for every GPU without a spill, and the main loop of the product is made of multiply-adds."""

import itertools
import re
from collections import Counter
from itertools import product as product_of

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install fastbp[cuda]")
pytest.importorskip("cuda.core", reason="needs the assembler: pip install fastbp[cuda]")

from fastbp.kernels import layout
from fastbp.kernels.cuda import blocking, catalogue, cluster, cluster_plan, driver, gemm, mma, panels, warpgroup, wgmma

from . import machine_code

pytestmark = pytest.mark.skipif(driver.simulated, reason="the simulator makes no machine code")

CAPABILITIES = ((8, 0), (9, 0, "a"), (10, 0))
DTYPES = ("float32", "float64")
needs_disassembler = pytest.mark.skipif(
    machine_code.disassembler() is None, reason="needs nvdisasm: pip install nvidia-cuda-nvdisasm"
)


def architecture(capability):
    return "sm_" + "".join(map(str, capability))


def spread(precisions, turn=0):
    """Products over layouts, tiles and capabilities: not every combination, but every two of them meet."""
    return [
        pytest.param(
            *kind, trans, tile, capability, id=f"{'-'.join(kind)}-{trans}-{tile.name}-{architecture(capability)}"
        )
        for kind in precisions
        for i, trans in enumerate(gemm.TRANSPOSITIONS)
        for j, tile in enumerate(blocking.tiles_of(np.dtype(kind[0]).itemsize, kind[1]))
        for capability in [CAPABILITIES[(i + j + turn) % len(CAPABILITIES)]]
    ]


IEEE = (("float32", "ieee"), ("float64", "ieee"))
TENSOR_CORES = (("float32", "tf32"), ("float32", "bf16"), ("float32", "bf16x3"))
REGISTERS = 65536  # of a multiprocessor
STATIC_SHARED = 48 * 1024  # the most a block has without asking
RESERVED_SHARED = 1024  # what the system takes of a block's beside that, from sm_90 on
MULTIPROCESSOR_SHARED = 160 * 1024  # the least of these architectures


def assemble(kernel, capability):
    cubin, report = machine_code.assemble(kernel, capability)
    assert (report.stack, report.spill_stores, report.spill_loads, report.losses) == (0, 0, 0, ()), report
    return cubin, report


def product(dtype, trans, epilogue, tile, precision, access="vectors"):
    name = f"gemm {trans} {epilogue} {precision} {tile.name} {access}"
    return next(kernel for found, kernel in gemm.kernels(dtype) if found == name)


# ---------------------------------------------------------------------------------------- the product
# Of the instructions of the main loop at least so many multiply and add; the others load panels and fragments (16
# bytes each), store panels, wait, and count. A smaller tile has fewer multiply-adds for what it loads.
SHARE = {
    "float32": {"large": 0.866, "medium": 0.816, "small": 0.727},
    "float64": {"medium": 0.721, "small": 0.599},
}


@needs_disassembler
@pytest.mark.parametrize(("dtype", "precision", "trans", "tile", "capability"), spread(IEEE))
def test_product(tmp_path, dtype, precision, trans, tile, capability):
    cubin, report = assemble(product(dtype, trans, "none", tile, precision), capability)
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


# Beside the instructions of the tensor cores there are the roundings (two a number for TF32, one for two numbers for
# BF16; for bf16x3 as many again and the differences for low parts), the loads of what is rounded (16 bytes each, in the
# smallest tile 8 where rows touch), the copies of the panels, and the addresses of these.
TF32 = "HMMA.1688.F32.TF32"
MATRIX_SHARE = {
    "tf32": {"large": 0.219, "medium": 0.108, "small": 0.045},
    "bf16": {"large": 0.197, "medium": 0.087, "small": 0.032},
    "bf16x3": {"large": 0.245, "medium": 0.125, "small": 0.055},
}


@needs_disassembler
@pytest.mark.parametrize(("dtype", "precision", "trans", "tile", "capability"), spread(TENSOR_CORES, turn=1))
def test_product_by_tensor_cores(tmp_path, dtype, precision, trans, tile, capability):
    cubin, report = assemble(product(dtype, trans, "none", tile, precision), capability)
    assert report.registers * tile.threads * tile.blocks <= REGISTERS
    assert report.shared <= STATIC_SHARED + RESERVED_SHARED
    assert report.shared * tile.blocks <= MULTIPROCESSOR_SHARED

    loop = machine_code.main_loop(machine_code.disassemble(cubin, tmp_path))
    opcode, terms = (TF32, 8) if precision == "tf32" else ("HMMA.16816.F32.BF16", 16)
    times, parts = (3, 2) if precision == "bf16x3" else (1, 1)
    numbers = (tile.tm + tile.tn // 2) * 4  # of A and B, that a thread needs of a panel
    assert loop[opcode] == times * tile.tm // 2 * (tile.tn // 2) * tile.bk // terms
    assert loop["LDGSTS.E.BYPASS.128"] == (tile.bm + tile.bn) * tile.bk // (4 * tile.threads)
    assert 4 * loop["LDS.128"] + 2 * loop["LDS.64"] == numbers
    assert tile.name == "small" or not loop["LDS.64"]
    # One group of copies is closed, one is waited for, and all threads have met; nothing else touches memory.
    assert loop["LDGDEPBAR"] == loop["DEPBAR.LE"] == loop["BAR.SYNC.DEFER_BLOCKING"] == 1
    others = [name for name in loop if name.startswith(("LD", "ST")) and not name.startswith(("LDC", "LDGDEPBAR"))]
    assert set(others) <= {"LDGSTS.E.BYPASS.128", "LDS.128", "LDS.64"}, others
    if precision == "tf32":
        assert loop["FFMA"] == numbers
        assert loop["LOP3.LUT"] <= numbers + 8, loop  # the mask of the exponent: the tensor core itself cuts off
    else:
        assert sum(count for name, count in loop.items() if name.startswith("F2FP.BF16")) == parts * numbers // 2
    assert loop[opcode] >= MATRIX_SHARE[precision][tile.name] * loop.total(), loop


# What the precision changes does not depend on the access: half of the products by tensor cores, in turn.
@pytest.mark.parametrize(
    ("dtype", "precision", "trans", "tile", "capability"), spread(IEEE, turn=2) + spread(TENSOR_CORES, turn=2)[::2]
)
def test_product_of_any_alignment(dtype, precision, trans, tile, capability):
    assemble(product(dtype, trans, "none", tile, precision, "elements"), capability)


# By default forward in one dtype and backward in the other, in turn: so every activation with both, in each dtype.
@pytest.mark.parametrize(
    ("number", "trans", "step", "dtype", "precision"),
    [
        pytest.param(
            number, *step, *kind, id=f"{step[1]}-{layout.ACTIVATIONS[number]}-{'-'.join(kind)}",
            marks=[pytest.mark.long] * ((number + i + j) % 2),
        )
        for number in range(1, len(layout.ACTIVATIONS))  # after the identity
        for i, kind in enumerate((*IEEE, TENSOR_CORES[number // 2 % 2]))
        for j, step in enumerate((("NN", "forward"), ("NT", "backward")))
    ],
)  # fmt: skip
def test_product_with_activation(number, trans, step, dtype, precision):
    tiles = blocking.tiles_of(np.dtype(dtype).itemsize, precision)
    tile, capability = tiles[number % len(tiles)], CAPABILITIES[number // 3 % len(CAPABILITIES)]
    assemble(product(dtype, trans, f"{step}:{layout.ACTIVATIONS[number]}", tile, precision), capability)


@pytest.mark.parametrize(
    ("dtype", "precision", "trans", "tile", "capability"),
    [
        one
        for one in spread(IEEE, turn=1) + spread(TENSOR_CORES[:1], turn=2)
        if "small" not in one.id and "TN" not in one.id
    ],
)
def test_product_of_two_tiles(tmp_path, dtype, precision, trans, tile, capability):
    """As many blocks fit as of the larger tile by itself, and its loop is not longer for it."""
    alone, of_one = assemble(gemm.gemm_kernel(trans, dtype, "none", precision, tile), capability)
    rest = blocking.tiles_of(np.dtype(dtype).itemsize, precision)[-1]
    beside, of_two = assemble(gemm.gemm_kernel(trans, dtype, "none", precision, tile, rest=rest), capability)
    assert of_two.shared == of_one.shared
    assert of_two.registers * tile.threads * tile.blocks <= REGISTERS
    loops = [machine_code.main_loop(machine_code.disassemble(cubin, tmp_path)) for cubin in (alone, beside)]
    assert loops[1].total() <= 1.02 * loops[0].total(), loops


# ------------------------------------------------------------------------------- products by warpgroups
EPILOGUES = ["none"] + [f"{step}:{name}" for step in ("forward", "backward") for name in layout.ACTIVATIONS[1:]]
HOPPER = (9, 0, "a")
BLOCK_SHARED = 227 * 1024  # the most a block can ask for


def by_warpgroups():
    """Those of each precision and tile, in turn with another epilogue; the others where all are asked for."""
    for turn, (precision, tile) in enumerate(itertools.product(panels.FORMS, blocking.PANEL_TILES)):
        chosen = ("none", True, False), ("forward:relu", True, True), ("backward:gelu", False, True)
        for kind in itertools.product(EPILOGUES, (True, False), (True, False)):
            marks = [pytest.mark.long] * (kind != chosen[turn % len(chosen)])
            words = "vectors" if kind[1] else "elements", "stored" if kind[2] else "as it is"
            yield pytest.param(
                precision, tile, *kind, id="-".join((precision, tile.name, kind[0], *words)), marks=marks
            )


@needs_disassembler
@pytest.mark.parametrize(("precision", "tile", "epilogue", "vectors", "stores"), list(by_warpgroups()))
def test_product_by_warpgroups(tmp_path, precision, tile, epilogue, vectors, stores):
    cubin, report = assemble(wgmma.product_kernel(precision, epilogue, tile, vectors, stores), HOPPER)
    assert wgmma.Places(tile).bytes + report.shared <= BLOCK_SHARED + RESERVED_SHARED
    # A launch gives every warp as many registers as the report says; then some give theirs to the others.
    few, many = wgmma.FEW_REGISTERS, wgmma.MANY_REGISTERS
    # Whoever asks for more waits for ever where the block has not as many.
    has = report.registers * wgmma.THREADS
    assert (few + blocking.CONSUMERS * many) * (wgmma.THREADS // (1 + blocking.CONSUMERS)) <= has <= REGISTERS
    text = machine_code.disassemble(cubin, tmp_path)
    assert re.findall(r"USETMAXREG\S* .*?(0x\w+)", text) == [hex(many), hex(few)]
    assert machine_code.most_registers(text) <= many
    copying = re.search(r"USETMAXREG\.DEALLOC.*?UBLKCP.*?\*/ +EXIT", text, re.DOTALL)[0]
    assert machine_code.most_registers(copying) <= few

    # The sums stay where they are, and nothing moves them. A panel is a wait for its copies, its products, a wait.
    form = panels.FORMS[precision]
    opcode = f"HGMMA.64x{tile.bn}x{warpgroup.TERMS[form.kind]}.F32.{form.kind.upper()}"
    products = re.findall(rf"{opcode} (R\d+), gdesc\[UR\d+\], (R\d+)", text)
    assert len(products) == len(form.products)
    assert len({register for pair in products for register in pair}) == 1
    loop = min((loop for loop in machine_code.loops(text) if loop[opcode]), key=Counter.total)
    assert loop[opcode] == len(products)
    assert loop["WARPGROUP.ARRIVE"] == loop["WARPGROUP.DEPBAR.LE"] == 1
    assert not [name for name in loop if name.startswith(("LD", "ST", "BAR", "MEMBAR"))], loop
    assert loop.total() <= 72 + 2 * len(products), loop
    copies = max(
        (Counter({name: loop[name] for name in loop if "UBLKCP" in name}) for loop in machine_code.loops(text)),
        key=Counter.total,
    )
    # A panel of A, and one of B, or a half of it for two blocks.
    assert copies == Counter(["UBLKCP.S.G", "UBLKCP.S.G" + ".MULTICAST" * (tile.blocks > 1)])
    assert text.count("UCGABAR_ARV") == text.count("UCGABAR_WAIT") == 2 * (tile.blocks > 1)


def by_warps():
    """Each precision for one of the GPUs; the others where all are asked for."""
    for i, precision in enumerate(panels.FORMS):
        for j, capability in enumerate(CAPABILITIES):
            for k, (epilogue, stores) in enumerate(
                itertools.product(("none", "forward:gelu", "backward:silu"), (True, False))
            ):
                marks = [pytest.mark.long] * (i != j or k != (2 * i + 1) % 6)
                words = precision, architecture(capability), epilogue, "stored" if stores else "as it is"
                yield pytest.param(precision, capability, epilogue, stores, id="-".join(words), marks=marks)


@needs_disassembler
@pytest.mark.parametrize(("precision", "capability", "epilogue", "stores"), list(by_warps()))
def test_product_by_warps(tmp_path, precision, capability, epilogue, stores):
    """Operands come from shared memory as the instruction takes them: no register is moved, nothing is rounded."""
    cubin, report = assemble(mma.product_kernel(precision, epilogue, stores=stores), capability)
    assert report.registers * mma.THREADS <= REGISTERS
    loop = min(
        (loop for loop in machine_code.loops(machine_code.disassemble(cubin, tmp_path)) if loop["LDSM.16.M88.4"]),
        key=Counter.total,
    )
    products = sum(count for name, count in loop.items() if name.startswith("HMMA"))
    steps, tile = panels.FORMS[precision].products, mma.TILES[0]
    warp_m, warp_n = tile.bm // mma.WARPS_M, tile.bn // mma.WARPS_N
    assert products == len(steps) * (warp_m // 16) * (warp_n // mma.COLUMNS)
    assert loop["LDSM.16.M88.4"] == mma.STEPS * (warp_m // 16 + warp_n // 16)
    assert loop.total() - products <= 100, loop


@pytest.mark.parametrize(
    ("way", "tile", "rest", "capability"),
    [(wgmma, *pair, HOPPER) for pair in blocking.with_smaller(wgmma.TILES)] + [(mma, *mma.TILES, (8, 0))],
    ids=lambda one: getattr(one, "NAME", getattr(one, "name", "")),
)
def test_two_tiles_of_stored_factors(way, tile, rest, capability):
    """They keep within the registers of the larger one."""
    assemble(way.product_kernel("bf16", "forward:relu", tile, True, True, rest), capability)


@pytest.mark.parametrize("precision", panels.FORMS)
@pytest.mark.parametrize(
    "optimizer",
    [None, *(pytest.param(name, marks=[pytest.mark.long] * (name != "adam")) for name in layout.OPTIMIZERS)],
)
def test_storing(precision, optimizer):
    kernel = panels.store_kernel(precision) if optimizer is None else panels.update_kernel(optimizer, precision)
    assemble(kernel, HOPPER)


# ------------------------------------------------------------------------------------- the other kernels
# Those of a cluster are below.
OTHERS = (
    [kernel for kernel in catalogue.kernels() if not kernel.name.startswith("gemm")] if not driver.simulated else []
)


def by_default(kernel, i, j):
    """A kernel for one of the architectures, in turn; that of all steps for one of the dtypes, in turn too.

    What it is made of, a loss, an optimizer and activations, is there in each dtype as kernels of their own.
    """
    in_turn = kernel.name not in STEPS or kernel.dtype == DTYPES[STEPS.index(kernel.name) % len(DTYPES)]
    return in_turn and (i + j) % len(CAPABILITIES) == 0


STEPS = [kernel.name for kernel in OTHERS if kernel.name.startswith("steps") and kernel.dtype == DTYPES[0]]


@pytest.mark.parametrize(
    ("kernel", "capability"),
    [
        pytest.param(
            kernel,
            capability,
            id=f"{kernel.name} {kernel.dtype}-{architecture(capability)}",
            marks=[pytest.mark.long] * (not by_default(kernel, i, j)),
        )
        for i, kernel in enumerate(OTHERS)
        for j, capability in enumerate(CAPABILITIES)
    ],
)
def test_kernel(kernel, capability):
    assemble(kernel.function, capability)


# ------------------------------------------------------------------------------------------ clusters
# By default one kernel for each architecture that has clusters, and each precision.
DEFAULT = ((2, HOPPER, "ieee"), (3, (10, 0), "ieee"), (2, (10, 0), "tf32"), (3, HOPPER, "tf32"))


@needs_disassembler
@pytest.mark.parametrize(
    ("number", "capability", "precision"),
    [
        pytest.param(*kind, id=f"{layout.LOSSES[kind[0]]}-{architecture(kind[1])}-{kind[2]}", marks=marks)
        for kind in product_of(range(len(layout.LOSSES)), CAPABILITIES[1:], cluster_plan.TILES)
        for marks in [[pytest.mark.long] * (kind not in DEFAULT)]
    ],
)
def test_cluster(tmp_path, number, capability, precision):
    """Two barriers of the cluster a step; gradients and losses fetched from each block, parameters sent to each."""
    _, kernel = list(cluster.kernels(precision))[number]
    cubin, report = assemble(kernel, capability)
    assert report.registers * cluster.THREADS <= REGISTERS
    assert report.shared <= cluster.STATIC_BYTES + RESERVED_SHARED
    text = machine_code.disassemble(cubin, tmp_path)
    found = Counter(machine_code.opcodes(text))
    assert (found["UCGABAR_ARV"], found["UCGABAR_WAIT"]) == (2, 2)
    assert found["LD.E.64"] == 2 * cluster.MANY_BLOCKS
    assert found["LD.E"] == found["ST.E"]  # the compiler may make the loop of the update more than once
    assert found["LD.E"] % cluster.MANY_BLOCKS == 0 < found["LD.E"]
    # Forward, back, and the gradient of a weight: all from shared memory, 16 bytes at a time, or 8.
    if precision == "ieee":
        loops = [loop for loop in machine_code.loops(text) if loop["FFMA"] >= max(16, 0.45 * loop.total())]
    else:
        loops = [loop for loop in machine_code.loops(text) if loop[TF32] and loop.total() < 100]
    assert len(loops) == 3, loops
    for loop in loops:
        if precision == "ieee":
            assert loop["LDS.128"] <= 6 * loop["FFMA"] // 32, loop
        else:  # two instructions for eight terms of 16 x 16 elements, of which a number is rounded by two others
            assert (loop["LDS.64"], loop["FFMA"], loop["LOP3.LUT"]) == (2 * loop[TF32], 4 * loop[TF32], 4 * loop[TF32])
        accesses = {name for name in loop if name.startswith(("LD", "ST"))}
        assert accesses == {"LDS.128" if precision == "ieee" else "LDS.64"}, loop
