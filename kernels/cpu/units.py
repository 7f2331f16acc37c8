"""Which unit of the CPU multiplies numbers of bfloat16: a fixed rule, or what FASTBP_BF16_UNIT asks for.

It is never chosen by timing, because the bits of a result depend on it. ``float32`` is the unit of float32 on factors
that were rounded, ``avx512-bf16`` the instruction ``vdpbf16ps``, ``amx`` the tile registers. With ``-emulated`` behind
its name a unit's kernels run on every CPU, vector instructions standing for those that it has not: for tests, and slow.
"""

import ctypes
import errno
import os
import platform
from functools import cache

from . import blocking

FLOAT32, AVX512, AMX = "float32", "avx512-bf16", "amx"
EMULATED = "-emulated"
NAMES = FLOAT32, AVX512, AMX, AVX512 + EMULATED, AMX + EMULATED
VARIABLE = "FASTBP_BF16_UNIT"
FEATURES = {FLOAT32: (), AVX512: ("avx512bf16", "avx512vl"), AMX: ("amx-tile", "amx-bf16")}  # of LLVM
# arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA): Linux keeps room for a thread's tiles only where it was asked to.
ARCH_PRCTL, REQUEST, TILE_DATA = 158, 0x1023, 18


def chosen() -> str:
    """The unit in force, one of `NAMES`.

    Raises
    ------
    ValueError
        FASTBP_BF16_UNIT names none, or one that this CPU or its system has not.
    """
    asked = os.environ.get(VARIABLE)
    return usable(asked) if asked else rule()


@cache
def rule() -> str:
    """The unit of this family of CPUs, as steps of `fit` were measured on it: tile registers where there are some.

    On a Xeon of 2023 (Emerald Rapids) ``amx`` takes 0.3 to 0.6 of the time of a step in float32 (S4 to S7), and
    ``avx512-bf16`` 1.4 times as long as the unit of float32 does on rounded factors (S4 to S6). AMD's processors have
    that one alone; none of them has been measured.
    """
    try:
        return usable(AMX)
    except ValueError:
        return FLOAT32


def others() -> list[str]:
    """The units that this CPU has and `chosen` is not, but for that of float32."""
    return [name for name in (AVX512, AMX) if name != chosen() and not _missing(name)]


def is_emulated(unit: str) -> bool:
    """Whether vector instructions stand for those of the unit."""
    return unit.endswith(EMULATED)


def has_tiles(unit: str) -> bool:
    """Whether the unit is that of tile registers, emulated or not."""
    return unit.startswith(AMX)


def _missing(unit):
    """The features that the unit needs and that Numba does not compile for."""
    return [feature for feature in FEATURES[unit] if feature not in blocking.FEATURES]


@cache
def usable(unit: str) -> str:
    """The unit, if this CPU and its system have it, else a ValueError that says why not."""
    if unit not in NAMES:
        raise ValueError(f"{VARIABLE} may be {', '.join(NAMES)}; got {unit!r}: name one of these, or unset it")
    if not is_emulated(unit):
        if missing := _missing(unit):
            raise ValueError(f"{VARIABLE}={unit}: this CPU has no {', '.join(missing)}; unset it, or name {FLOAT32}")
        if has_tiles(unit):
            _request_tiles()
    return unit


def _request_tiles():
    """Ask the system for tile registers, once a process: for all its threads, and children that it forks."""
    if platform.system() != "Linux":
        raise ValueError(f"{VARIABLE}={AMX}: tile registers are asked for on Linux only; unset it, or name {FLOAT32}")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(ARCH_PRCTL, REQUEST, TILE_DATA):
        code = ctypes.get_errno()
        reason = f"{errno.errorcode.get(code, code)}, {os.strerror(code)}"
        raise ValueError(
            f"{VARIABLE}={AMX}: the system does not grant tile registers ({reason}); unset it, or name {FLOAT32}"
        )
