"""Every size the CPU kernels use, on one screen: instruction set -> register tile, caches -> blocks.

The instruction set is the one Numba will really compile for: the host's, or what NUMBA_CPU_NAME and
NUMBA_CPU_FEATURES ask for.
"""

import contextlib
from pathlib import Path
from typing import NamedTuple

import llvmlite.binding as llvm
import numpy as np
from numba.core import config


class InstructionSet(NamedTuple):
    """A register tile: MR rows of NV vectors of accumulators, NV vectors of B and one broadcast of A."""

    name: str
    feature: str  # the LLVM feature that must be on
    vector_bytes: int  # bytes in one register
    mr: int  # rows of the largest tile
    mr_tail: int  # rows of the tile for what mr leaves; one row after that
    nv: int  # vectors in a row of a tile
    tall: int  # rows of an elementwise kernel whose vectors run side by side
    fma: str  # the LLVM feature of a fused multiply-add; "" if it always has one


# Accumulators + NV + 1 registers of 32 (AVX-512, NEON) or 16 (AVX2, generic). mr_tail * nv must stay at or
# above 8 where it can: two FMA a cycle at a latency of four cycles. The operations on one vector of an exponential
# wait for each other, so several run side by side: as many as leave registers for its constants (AVX2: two rows take
# some 0.93 of the time of four, and 0.9 of that of one).
INSTRUCTION_SETS = (
    InstructionSet("AVX-512", "avx512vl", 64, 12, 4, 2, 4, "avx512f"),
    InstructionSet("AVX2", "avx2", 32, 6, 4, 2, 2, "fma"),
    InstructionSet("NEON", "neon", 16, 8, 4, 3, 4, ""),
    InstructionSet("generic", "", 16, 6, 2, 2, 2, "fma"),
)


def effective_features() -> set[str]:
    """LLVM features Numba compiles with in this process (NUMBA_CPU_NAME=generic means none)."""
    text = config.CPU_FEATURES
    if text is None:
        text = llvm.get_host_cpu_features().flatten()
    return {feature[1:] for feature in text.split(",") if feature.startswith("+")}


FEATURES = effective_features()
ISA = next(isa for isa in INSTRUCTION_SETS if isa.feature in FEATURES or not isa.feature)
HAS_FMA = not ISA.fma or ISA.fma in FEATURES

SQUARE = (ISA.vector_bytes // 4) ** 2  # elements in as many float32 registers as lanes
MR, MR_TAIL, NV, TALL = ISA.mr, ISA.mr_tail, ISA.nv, ISA.tall
VECTOR_BYTES = ISA.vector_bytes

# A gradient of a narrow weight is made in the scratch for packed operands where it takes no more than this.
NARROW_BYTES = 512 * NV * VECTOR_BYTES
# Rows of a weight whose product with a transposed batch is transposed at once.
MC = 264
# Rows of a batch that go through the whole network together: enough that a pass over the weights pays.
ROWS = 2 * MC
# A block of weights: its gradient (at most GRADIENT_MOST elements, 128 KiB) stays in L1/L2 between the product
# and the update; the slice of the upstream gradient it needs (GRADIENT_SLICE_BYTES) stays in L2 from block to
# block. At least GRADIENT_LEAST elements, so that calling costs little; about 16 blocks a layer for the threads.
GRADIENT_SLICE_BYTES = 512 * 1024
GRADIENT_MOST = 32768
GRADIENT_LEAST = 4096
GRADIENT_UNIT = 64
GRADIENT_COLUMNS = 4096
# Columns of such a block where factors are pairs, whose blocks have 32 rows or more.
PAIRS_COLUMNS = 512
# Scratch for one block of gradient: the largest, or MR rows of GRADIENT_COLUMNS and two registers of padding.
GRADIENT_SCRATCH = max(GRADIENT_MOST, MR * (GRADIENT_COLUMNS + VECTOR_BYTES // 2))
# Multiply-adds of one parallel region below which a second thread costs more than it gives (some 20 us of work).
SERIAL_WORK = 2_000_000
# How many elements ahead the optimizer asks for lines, where parameters lie one after another.
AHEAD = 128
# Numbers of a buffer whose extremes are looked for in two passes: the second finds many in the first cache.
FEW = 1 << 14
# How far ahead a gather asks memory for what it will read: nothing foresees shuffled rows (S9 650 -> 570 us).
VECTORS_AHEAD = 32


# ------------------------------------------------------------------------------------ blocks of a product
# Bytes of L2 where the system does not say.
GUESSED_L2 = 512 * 1024
CPU_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
# Bytes that the first-level TLB reaches: 64 pages of 4 KiB, the least that a processor of the last ten years has. No
# system reports it.
REACH_BYTES = 64 * 4096

# What `gemm` is told when it runs: so kernels in the cache are those of an instruction set, not of a cache.
TERMS, STRIPS_BYTES, FAR_BYTES, SPAN_BYTES, STRIP_PANELS, COPY_TILES, PANELS = range(7)


def l2_bytes(directory=CPU_CACHES) -> int:
    """Bytes of the second-level cache of a core, as Linux reports it; elsewhere the guess."""
    for index in directory.glob("index*"):
        with contextlib.suppress(OSError, ValueError):
            if int((index / "level").read_text()) == 2 and (index / "type").read_text().strip() != "Instruction":
                size = (index / "size").read_text().strip()
                return int(size.rstrip("KM")) * {"K": 1024, "M": 1024**2}.get(size[-1], 1)
    return GUESSED_L2


def product_sizes(l2) -> np.ndarray:
    """How `gemm` cuts and packs a product, from the bytes of L2; no bit of a result depends on it.

    - A panel of B has 512 terms, fewer where that is more than a 16th of L2: it comes from L2 for the first tile, and C
      is read and written once for so many terms.
    - Strips of A take half of L2, or all but half a megabyte, while panels of B pass. B is far if it is larger than L2.
    - Copied panels that are kept for the next rows of A take twice as much as L2, and come from L3.
    - What is read in more pages than the TLB reaches is packed: A down its columns if it is used for 4 panels of B or
      more, a panel of B if it is used for 8 tiles of A or more.
    """
    sizes, panel = np.zeros(7, np.int64), l2 // 16 // (NV * VECTOR_BYTES)
    sizes[TERMS] = min(max(panel // 64 * 64, 128), 512)
    sizes[STRIPS_BYTES] = max(l2 // 2, l2 - 512 * 1024, 128 * 1024)
    sizes[FAR_BYTES], sizes[SPAN_BYTES] = l2, REACH_BYTES
    sizes[STRIP_PANELS], sizes[COPY_TILES] = 4, 8
    sizes[PANELS] = max(2 * l2 // (int(sizes[TERMS]) * NV * VECTOR_BYTES), 1)
    return sizes


L2_BYTES = l2_bytes()
SIZES = product_sizes(L2_BYTES)
# Parameters of a network whose batches go through it in groups of rows: their gradients are read and written for each.
GROUPED_BYTES = 64 * 1024


def group_rows(row_bytes, l2=L2_BYTES) -> int:
    """Rows that go forward and back before the gradients of weights read what they left, a quarter of L2 at most.

    In whole blocks of ROWS, so that a group does not end within one.
    """
    return max(l2 // 4 // (row_bytes * ROWS), 1) * ROWS


def packed_bytes(sizes) -> int:
    """Bytes of scratch that `gemm` needs: panels of B, of which a last one may be several narrow, and strips of A."""
    return int((sizes[PANELS] + NV - 1) * sizes[TERMS]) * NV * VECTOR_BYTES + int(sizes[STRIPS_BYTES])


def scratch_bytes(sizes) -> int:
    """Bytes of scratch for packed operands, or for a narrow gradient."""
    return max(packed_bytes(sizes), NARROW_BYTES)


def sizes_for(rows, widest, itemsize) -> np.ndarray:
    """`SIZES` with no more panels than products of so many rows can keep, whose factors have so many columns at most.

    Where the rows are one block there is nothing to keep them for, and the scratch of a small network stays small.
    """
    sizes = SIZES.copy()
    panels = -(-widest * itemsize // (NV * VECTOR_BYTES))
    if rows * min(widest, int(sizes[TERMS])) * itemsize <= sizes[STRIPS_BYTES]:
        panels = 1
    sizes[PANELS] = max(min(panels, int(sizes[PANELS])), 1)
    return sizes
