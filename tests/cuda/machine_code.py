"""Machine code of CUDA kernels, made and read without a GPU: what the assembler reports, and the loops."""

import re
import shutil
import struct
import subprocess
import sysconfig
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from cuda.core import Linker, LinkerOptions, ObjectCode
from numba.cuda import dispatcher as dispatchers
from numba.cuda.codegen import CUDACodeLibrary
from numba.cuda.cudadrv.libs import get_cudalib

from fastbp.kernels.cuda import driver
from fastbp.kernels.cuda.machine_code import compiled


@contextmanager
def as_if_on(capability):
    """Within it Numba compiles for a GPU without asking a driver for it, of which only this is read."""
    ask, architecture = dispatchers.get_current_device, CUDACodeLibrary._ensure_cc
    known, driver.compute_capability = driver.compute_capability, lambda: capability
    dispatchers.get_current_device = lambda: SimpleNamespace(compute_capability=capability)
    CUDACodeLibrary._ensure_cc = lambda library, given: given or capability
    try:
        yield
    finally:
        dispatchers.get_current_device, CUDACodeLibrary._ensure_cc = ask, architecture
        driver.compute_capability = known


def cubin(kernel, capability) -> tuple[bytes, str]:
    """The machine code of a kernel, and what the assembler says of its registers and spills; needs no GPU.

    Up to the assembler it is what a launch compiles on a GPU of this compute capability, such as ``(9, 0, "a")``.
    """
    with as_if_on(capability):
        made = compiled(kernel)
        if kernel.whole:
            sources = [ObjectCode.from_ltoir(made.library.get_ltoir())]
        else:
            sources = [ObjectCode.from_ptx(made.library.get_asm_str().encode())]
    if made.cooperative:  # waits for the whole grid, by a function of the CUDA runtime
        sources.append(ObjectCode.from_library(get_cudalib("cudadevrt", static=True)))
    architecture = "sm_" + "".join(map(str, capability))
    options = LinkerOptions(arch=architecture, link_time_optimization=kernel.whole, ptxas_options=["-v"])
    linker = Linker(*sources, options=options)
    code, log = linker.link("cubin").code, linker.get_info_log()
    return code, log.decode() if isinstance(log, bytes) else log


def disassembler():
    """The path of nvdisasm: of the package nvidia-cuda-nvdisasm, or of an installed toolkit; None if there is none."""
    packaged = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin/nvdisasm"))
    return str(packaged[-1]) if packaged else shutil.which("nvdisasm")


class Report(NamedTuple):
    """What the assembler says of a kernel, in registers and bytes."""

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int
    losses: tuple  # what it says that it had to give up, such as registers or products that run on


def assemble(kernel, capability) -> tuple[bytes, Report]:
    """A kernel's machine code for a compute capability such as ``(9, 0, "a")``, and the report on it."""
    code, log = cubin(kernel, capability)
    patterns = (r"Used (\d+) registers", r"(\d+) bytes stack", r"(\d+) bytes spill stores", r"(\d+) bytes spill loads")
    numbers = [int(re.search(pattern, log)[1]) for pattern in patterns]
    shared = sum(size for name, size in sections(code) if name.startswith(".nv.shared."))
    return code, Report(*numbers, shared, tuple(re.findall(r"Potential Performance Loss: (.*)", log)))


def sections(elf):
    """(name, bytes) of every section of a 64-bit ELF file."""
    start, size, count, names = (struct.unpack_from(form, elf, at)[0] for form, at in SECTION_TABLE)
    headers = [struct.unpack_from("<IIQQQQ", elf, start + i * size) for i in range(count)]
    strings = headers[names][4]
    return [(elf[strings + name : elf.index(b"\0", strings + name)].decode(), length) for name, *_, length in headers]


SECTION_TABLE = (("<Q", 0x28), ("<H", 0x3A), ("<H", 0x3C), ("<H", 0x3E))  # start, entry size, entries, names


def disassemble(cubin, directory) -> str:
    """The machine code as text."""
    path = directory / "kernel.cubin"
    path.write_bytes(cubin)
    return subprocess.run([disassembler(), "-c", path], check=True, capture_output=True, text=True).stdout


LABEL = re.compile(r"(\.L_x?_?\d+):")
INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([^;]+?)\s*;")
NEVER = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+@!U?PT\s")
BRANCH = re.compile(r"BRA\b.*`\((\.L_x?_?\d+)\)")


def opcodes(text) -> list[str]:
    """Of the instructions that may run, in their order."""
    found = [INSTRUCTION.match(line) for line in text.splitlines() if not NEVER.match(line)]
    return [instruction[1].split()[0] for instruction in found if instruction]


def loops(text) -> list[Counter]:
    """How often each opcode that may run is in each loop: from a label to the last branch back to it."""
    code, labels, ends = [], {}, {}
    for line in text.splitlines():
        if label := LABEL.match(line):
            labels[label[1]] = len(code)
        elif (instruction := INSTRUCTION.match(line)) and not NEVER.match(line):
            code.append(instruction[1])
            branch = BRANCH.match(instruction[1])
            if branch and branch[1] in labels:
                ends[labels[branch[1]]] = len(code)
    return [Counter(line.split()[0] for line in code[start:end]) for start, end in ends.items()]


def most_registers(text) -> int:
    """As many as reach to the last that is named."""
    return 1 + max(int(number) for number in re.findall(r"\bR(\d+)\b", text))


MULTIPLY_ADD = ("FFMA", "DFMA", "HMMA")


def multiply_adds(loop) -> int:
    return sum(count for opcode, count in loop.items() if opcode.startswith(MULTIPLY_ADD))


def main_loop(text) -> Counter:
    """The loop with the most multiply-adds, of those the innermost."""
    return max(loops(text), key=lambda loop: (multiply_adds(loop), -loop.total()))
