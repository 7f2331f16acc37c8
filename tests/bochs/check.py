"""By hand: the products of AMX and AVX512-BF16, and what stores their factors, by their own instructions on Bochs.

``python tests/bochs/check.py SOURCES`` with a directory in which Bochs was built, at first (gcc, ld and objcopy are
needed too):

    ./configure --enable-x86-64 --enable-avx --enable-evex --enable-amx --with-nogui --disable-plugins && make

Kernels are compiled for Sapphire Rapids and linked, with their operands and the results of the emulated units, to a
program that boots without a system (boot.S, check.c). It prints what differs, and whether tiles stay in use after a
product. Two faults of Bochs 3.0.devel show: results of float32 subtractions between 2^-126 and 2^-125 are flushed
(s_subMagsF32.cc: ``!expZ && sigDiff`` should be ``!expZ && (sigDiff << shiftDist) < 0x00800000``), and XINUSE has the
tile data the wrong way round (xsave.cc: ``tile_use_tracker == 0`` should be ``!= 0``).
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FEATURES = (
    "avx512f", "avx512vl", "avx512dq", "avx512bw", "avx2", "fma", "avx512bf16", "amx-tile", "amx-bf16",
)  # fmt: skip
UNITS = "amx", "avx512-bf16"
SHAPES = (1, 1, 1), (3, 5, 2), (16, 16, 32), (17, 33, 31), (32, 32, 64), (45, 70, 33), (64, 31, 40), (13, 33, 130)
EXTREME = 17, 33, 31  # with numbers whose products are near the least normal one, too
LOADED = 0x10000  # where the program begins, and what it may take until the memory of the BIOS
ROOM = 0x8F000
SECTORS = 32  # that are read at once
# From the last call of the program on: results, then the state of tiles that are configured, and the end.
SETTINGS = """\
megs: 32
romimage: file={sources}/bios/BIOS-bochs-latest
vgaromimage: file={sources}/bios/VGABIOS-lgpl/VGABIOS-lgpl-latest.bin
cpu: model=sapphire_rapids, ips=50000000
ata0-master: type=disk, path=disk.img, mode=flat, cylinders=20, heads=16, spt=63
boot: disk
log: bochs.log
panic: action=fatal
error: action=report
display_library: nogui
port_e9_hack: enabled=1
clock: sync=none
"""


def write_objects(folder):
    """Object code of the kernels, and declarations with their symbols; in a process that compiles for that CPU."""
    from fastbp.kernels.cpu import context, formats

    single, declared = np.dtype("float32"), []
    forms = formats.ROWS, formats.LINES, formats.PANELS, formats.TURNED  # panels are stacked by the same kernel
    kernels = {f"store_{form}": context.store_factor(single, form) for form in forms}
    kernels |= {f"gemm_{number}": context.product(single, unit) for number, unit in enumerate(UNITS)}
    for name, kernel in kernels.items():
        _, _, (code, _) = kernel.library.serialize_using_object_code()
        (Path(folder) / f"{name}.o").write_bytes(code)
        arguments = "long, long, float *, long, float *, float *, long"
        if name.startswith("gemm"):
            arguments = (
                "long, long, long, float *, long, long, float *, long, long, float *, float *, long, long, float *, "
                "float *, long, float *, long *, void *, float *, long, double"
            )
        declared.append(f'void {name}({arguments}) __asm__("{kernel.symbol}");')
    (Path(folder) / "symbols.h").write_text("\n".join(declared) + "\n")


class Data:
    """Arrays one after another, on cache lines."""

    def __init__(self):
        self.bytes = bytearray()

    def add(self, array):
        """Where it begins."""
        self.bytes += bytes(-len(self.bytes) % 64)
        begin = len(self.bytes)
        self.bytes += np.ascontiguousarray(array, np.float32).tobytes()
        return begin


def operands(rng, m, n, k, extreme):
    """(a, b, bias, what there was)."""
    a, b = (np.ldexp(rng.standard_normal(s, np.float32), rng.integers(-9, 9, s, np.int32)) for s in ((m, k), (k, n)))
    bias, before = rng.standard_normal(n, np.float32), rng.standard_normal((m, n), np.float32)
    if extreme:
        a, b = (np.ldexp(x, rng.integers(-78, -52, x.shape, np.int32)) for x in (a, b))
        a[0, :4], a[1, 0], a[2, 1] = (1e-40, -1e-39, 3e-38, -0.0), np.inf, np.nan
        bias, before = bias * np.float32(1e-38), before * np.float32(1e-38)
    return a, b, bias, before


def result(unit, product, precision, a, b, bias, before):
    """By what stands for the unit on this CPU."""
    from fastbp.kernels import cpu
    from fastbp.kernels.cpu import units

    os.environ[units.VARIABLE] = unit + units.EMULATED
    out = before.copy()
    if product == 0:
        cpu.linear_forward(a, b, bias, 0, 0.0, out, out, precision)
    elif product == 1:
        cpu.linear_backward_input(a, np.ascontiguousarray(b.T), out, 0, 0.0, out, precision)
    else:
        cpu.linear_backward_params(np.ascontiguousarray(a.T), b, 1, out, None, precision)
    return out


def write_cases(folder):
    """The operands, the results, and a table of the products."""
    from fastbp.kernels import layout

    rng, data, cases = np.random.default_rng(3), Data(), []
    for shape, extreme in [*((shape, False) for shape in SHAPES), (EXTREME, True)]:
        arrays = operands(rng, *shape, extreme)
        places = [data.add(array) for array in arrays]
        for number, unit in enumerate(UNITS):
            for precision in ("bf16", "bf16x3"):
                for product in range(3):
                    out = result(unit, product, layout.PRECISIONS.index(precision), *arrays)
                    cases.append((number, product, *shape, 3 if precision == "bf16x3" else 1, *places, data.add(out)))
    (folder / "data.bin").write_bytes(data.bytes)
    rows = ",\n".join("{" + ", ".join(map(str, case)) + "}" for case in cases)
    (folder / "cases.h").write_text(f"static const long cases[][{len(cases[0])}] = {{\n{rows}}};\n")


def build(folder):
    """A disk whose first sector loads the program that follows."""

    def run(*command):
        subprocess.run(command, cwd=folder, check=True)

    freestanding = ["-ffreestanding", "-fno-builtin", "-fno-pic", "-mcmodel=large", "-mno-red-zone"]
    freestanding.append("-fno-stack-protector")
    run("gcc", "-c", "-O1", *freestanding, "-I", ".", str(HERE / "check.c"), "-o", "check.o")
    run("gcc", "-c", "-DDATA", str(HERE / "boot.S"), "-o", "start.o")
    objects = ["start.o", "check.o", *(path.name for path in sorted(folder.glob("*_*.o")))]
    linked = ["-T", str(HERE / "link.ld"), "-nostdlib", "-no-pie", "--unresolved-symbols=ignore-all", "--no-warnings"]
    run("ld", *linked, *objects, "-o", "check.elf")
    run("objcopy", "-O", "binary", "-j", ".text", "-j", ".rodata", "check.elf", "check.bin")
    program = (folder / "check.bin").read_bytes()
    if len(program) > ROOM:
        raise SystemExit(f"the program has {len(program)} bytes, there is room for {ROOM}: take fewer shapes")
    count = -(-len(program) // (512 * SECTORS))
    run("gcc", "-c", f"-DCOUNT={count}", f"-DSECTORS={SECTORS}", str(HERE / "boot.S"), "-o", "boot.o")
    run("ld", "-Ttext", "0x7c00", "--oformat", "binary", "-e", "boot", "boot.o", "-o", "boot.bin")
    disk = (folder / "boot.bin").read_bytes() + program
    (folder / "disk.img").write_bytes(disk.ljust(20 * 16 * 63 * 512, b"\0"))


def main(sources):
    """Build and run; the exit status says whether all is well."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        numba = {"NUMBA_CPU_NAME": "sapphirerapids", "NUMBA_CPU_FEATURES": ",".join(f"+{one}" for one in FEATURES)}
        environment = {**os.environ, **numba, "FASTBP_CACHE": "0"}
        subprocess.run([sys.executable, __file__, "--objects", name], env=environment, check=True)
        write_cases(folder)
        build(folder)
        (folder / "bochsrc").write_text(SETTINGS.format(sources=Path(sources).resolve()))
        command = [Path(sources).resolve() / "bochs", "-q", "-f", "bochsrc"]
        process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        told = []
        for line in process.stdout:
            text = line.decode(errors="replace").strip()
            if text.startswith(("case", "tiles", "products")):
                told.append(text)
                print(text, flush=True)
            if text.startswith("products") or "no resolution" in text:
                break
        process.kill()
        process.wait()
    return 0 if len(told) == 2 and told[-1].endswith(" 0 differ") else 1


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if sys.argv[1] == "--objects":
        write_objects(sys.argv[2])
    else:
        sys.exit(main(sys.argv[1]))
