"""Every size the CPU kernels use, on one screen: instruction set -> register tile, caches -> blocks.

The instruction set is the one Numba will really compile for: the host's, or what NUMBA_CPU_NAME and
NUMBA_CPU_FEATURES ask for.
"""

from typing import NamedTuple

import llvmlite.binding as llvm
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
    InstructionSet("AVX2", "avx2", 32, 6, 2, 2, 2, "fma"),
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

# Blocks of a product. KC rows of a B panel (KC * NV * 64 bytes = 64 KiB) come from L2 for the first tile and
# stay there for the others; MC * KC elements of A stay in L2 (1 MiB) while every panel of B passes.
KC = 512
MC = 264
PANEL_BYTES = KC * NV * VECTOR_BYTES  # a transposed panel
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
# Scratch for one block of gradient: the largest, or MR rows of GRADIENT_COLUMNS and two registers of padding.
GRADIENT_SCRATCH = max(GRADIENT_MOST, MR * (GRADIENT_COLUMNS + VECTOR_BYTES // 2))
# Multiply-adds of one parallel region below which a second thread costs more than it gives (some 20 us of work).
SERIAL_WORK = 2_000_000
# A matrix B of more than FAR registers is not in L2: its lines are asked for one panel ahead (S8's products 6.7 ->
# 4.7 ms), or AHEAD elements ahead where it is transposed. Asking for lines that are in L2 costs up to 4 %.
FAR = 1024 * 1024 // VECTOR_BYTES
AHEAD = 128
# How far ahead a gather asks memory for what it will read: nothing foresees shuffled rows (S9 650 -> 570 us).
VECTORS_AHEAD = 32
