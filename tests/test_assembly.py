"""The machine code: what the inner loops of the product are made of, and that kernels need nothing of the C library.

A loop over k multiplies a tile that stays in registers: in no loop does a vector go to the stack, and in none over k is
the stack used at all. A full tile takes MR * NV fused multiply-adds of whole registers a term. Optimizers keep their
scalars in registers too.
"""

import itertools
import json
import platform
import re
import struct
from typing import NamedTuple

import llvmlite.binding as llvm
import numpy as np
import pytest

from fastbp.kernels import layout
from fastbp.kernels.cpu import blocking, context

from .contract.test_settings import SETTINGS

DTYPES = ("float32", "float64")


class Dialect(NamedTuple):
    """What to look for in the assembly of one architecture."""

    jump: re.Pattern  # to a label, which it captures
    end: re.Pattern  # nothing runs on from here to the next line
    multiply_add: re.Pattern  # fused, of vectors; captures the width
    stack: re.Pattern
    vector: re.Pattern  # a whole register; a number is in the part of one
    store: re.Pattern  # of anything to memory


X86 = Dialect(
    jump=re.compile(r"\tj\w+\t(\.L\w+)"),
    end=re.compile(r"\t(ret|jmp|ud2)"),
    multiply_add=re.compile(r"\tvfmadd\w+p[sd]\t.*%([xyz]mm)\d+$"),
    stack=re.compile(r"\(%rsp"),
    vector=re.compile(r"%[yz]mm"),
    store=re.compile(r"\t\w+\t.*\)( {%k\d})?$"),
)
ARM = Dialect(
    jump=re.compile(r"\t(?:b|b\.\w+|cbn?z\t\w+,|tbn?z\t\w+, #\d+,)[\t ](\.L\w+)"),
    end=re.compile(r"\t(ret|b|br)\b(?!\.)"),
    multiply_add=re.compile(r"\tfmla\tv\d+\.(4s|2d), "),
    stack=re.compile(r"\[sp"),
    vector=re.compile(r"\b[vq]\d+\b"),
    store=re.compile(r"\tst\w+\t"),
)
# The register of a full vector, by the bytes in it.
WIDTHS = {16: ("xmm", "4s", "2d"), 32: ("ymm",), 64: ("zmm",)}


# -------------------------------------------------------------------------------------- loops in a text
class Block:
    """Instructions that are entered at the first and left at the last; the blocks that may come after and before."""

    def __init__(self):
        self.code, self.after, self.before = [], [], []


def basic_blocks(assembly, dialect):
    """The blocks of the text, in order."""
    blocks, names, jumps = [Block()], {}, []
    for line in assembly.splitlines():
        if label := re.match(r"(\.L\w+):", line):
            blocks.append(Block())
            names[label[1]] = blocks[-1]
        elif re.match(r"\t[^.]", line):
            blocks[-1].code.append(line)
            if jump := dialect.jump.match(line):
                jumps.append((blocks[-1], jump[1]))
            if jump or dialect.end.match(line):
                blocks.append(Block())
    edges = [(block, names[name]) for block, name in jumps]
    for block, following in itertools.pairwise(blocks):
        if not (block.code and dialect.end.match(block.code[-1])):
            edges.append((block, following))
    for block, following in edges:
        block.after.append(following)
        following.before.append(block)
    return blocks


def reached(entry, without=None):
    """The blocks that a run from the entry may come to without passing through another."""
    seen, pending = {without}, [entry]
    while pending:
        block = pending.pop()
        if block not in seen:
            seen.add(block)
            pending.extend(block.after)
    return seen - {without}


def loops(blocks):
    """The natural loops as sets of blocks; all that go back to one block are one loop."""
    bodies, reachable = [], reached(blocks[0])
    for head in reachable:
        dominated = reachable - reached(blocks[0], without=head)
        body, pending = {head}, [block for block in head.before if block in dominated]
        if pending:
            while pending:
                block = pending.pop()
                if block in reachable and block not in body:
                    body.add(block)
                    pending.extend(block.before)
            bodies.append(body)
    return bodies


def loops_over_k(assembly, dialect):
    """The code of every innermost loop that multiplies and adds, and all code that is in any loop."""
    blocks = basic_blocks(assembly, dialect)
    bodies = loops(blocks)
    innermost = [body for body in bodies if not any(other < body for other in bodies)]
    codes = [code_of(blocks, body) for body in innermost]
    codes = [code for code in codes if any(dialect.multiply_add.match(line) for line in code)]
    return codes, code_of(blocks, set().union(*bodies))


def code_of(blocks, body):
    """The lines of these blocks, in the order of the text."""
    return [line for block in blocks if block in body for line in block.code]


def test_loops_of_a_text_made_by_hand():
    text = (
        "f:\n\tmovl\n.L1:\n\taddl\n.L2:\n\tvfmadd231ps\t%zmm0, %zmm1, %zmm2\n\tjne\t.L2\n\tjmp\t.L3\n.L9:\n\tjmp\t.L2\n"
    )
    text += ".L3:\n\tdecq\n\tjne\t.L1\n\tretq\n"
    over_k = ["\tvfmadd231ps\t%zmm0, %zmm1, %zmm2", "\tjne\t.L2"]
    assert loops_over_k(text, X86) == ([over_k], ["\taddl", *over_k, "\tjmp\t.L3", "\tdecq", "\tjne\t.L1"])
    assert sorted(len(body) for body in loops(basic_blocks(text, X86))) == [1, 4]


# ---------------------------------------------------------------------------------------- the product
def check_product(assembly, dialect, isa):
    codes, around = loops_over_k(assembly, dialect)
    # A constant that was stored before all loops may be read again after a call; what is stored in a loop is a spill.
    on_stack = [line for line in around if dialect.stack.search(line) and dialect.vector.search(line)]
    assert not [line for line in on_stack if dialect.store.match(line)]
    counts = []
    for code in codes:
        widths = [match[1] for line in code if (match := dialect.multiply_add.match(line))]
        assert set(widths) <= set(WIDTHS[isa["vector_bytes"]])
        on_stack = [line for line in code if dialect.stack.search(line)]
        # ARM code is looked at and not run: there one offset may be read again.
        assert len(on_stack) <= (dialect is not X86), on_stack
        assert not [line for line in on_stack if dialect.vector.search(line) or dialect.store.match(line)]
        counts.append(len(widths))
    # Full, tail and single rows, of full panels and of single vectors.
    for rows in (isa["mr"], isa["mr_tail"], 1):
        for vectors in (isa["nv"], 1):
            assert [n for n in counts if n % (rows * vectors) == 0], (rows, vectors, counts)


def print_product():
    """The register tile of this process, and the text of gemm for each dtype."""
    texts = {dtype: context.product(np.dtype(dtype)).assembly() for dtype in DTYPES}
    print(json.dumps({"isa": blocking.ISA._asdict(), "texts": texts}))


def x86_environment(instruction_set):
    """What makes Numba compile for it, where this machine is of the kind; nothing for what it compiles for anyway."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("not an x86-64")
    name, features = SETTINGS[instruction_set]
    if not all(llvm.get_host_cpu_features().get(feature) for feature in features):
        pytest.skip(f"this machine has no {instruction_set}")
    if instruction_set == blocking.ISA.name:
        return {}
    return {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": ",".join(f"+{feature}" for feature in features)}


@pytest.mark.parametrize("instruction_set", ["host", "AVX-512", "AVX2"])
def test_product(fresh, instruction_set):
    if instruction_set == blocking.ISA.name:
        pytest.skip("it is the host's")
    environment = {} if instruction_set == "host" else x86_environment(instruction_set)
    product = json.loads(fresh(print_product, **environment).stdout)
    if product["isa"]["name"] == "generic":
        pytest.skip("no fused multiply-add")
    dialect = ARM if product["isa"]["name"] == "NEON" else X86
    for text in product["texts"].values():
        check_product(text, dialect, product["isa"])


def print_product_for_neon():
    """As `print_product`, on another machine: Numba's module, compiled for a 64-bit ARM."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple("aarch64-linux-gnu").create_target_machine(cpu="neoverse-n1", opt=3)
    texts = {}
    for dtype in DTYPES:
        module = str(context.product(np.dtype(dtype)).library._get_module_for_linking())
        lines = [line for line in module.splitlines() if not line.startswith("target ")]
        lines.insert(0, f'target datalayout = "{machine.target_data}"\ntarget triple = "{machine.triple}"')
        texts[dtype] = machine.emit_assembly(llvm.parse_assembly("\n".join(lines)))
    print(json.dumps({"isa": blocking.ISA._asdict(), "texts": texts}))


def test_product_for_neon_assembled_not_run(fresh):
    try:
        llvm.initialize_all_targets()
        llvm.Target.from_triple("aarch64-linux-gnu")
    except RuntimeError:
        pytest.skip("this llvmlite has no ARM")
    environment = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "+neon"}
    product = json.loads(fresh(print_product_for_neon, FASTBP_CACHE="0", **environment).stdout)
    assert product["isa"]["name"] == "NEON"
    for text in product["texts"].values():
        check_product(text, ARM, product["isa"])


# ------------------------------------------------------------------------------- units of bfloat16
AVX512_FEATURES = ("avx512f", "avx512vl", "avx512dq", "avx512bw", "avx2", "fma", "avx512bf16")
# Machines that have them, whether or not this one does: the code is read, not run.
CPUS = {
    "avx512-bf16": ("znver4", AVX512_FEATURES),
    "amx": ("sapphirerapids", (*AVX512_FEATURES, "amx-tile", "amx-bf16")),
}
TILE_LINES = {name: re.compile(rf"\t{name}\t") for name in ("tileloadd", "tilestored", "tilezero", "tdpbf16ps")}
DOT = re.compile(r"\tvdpbf16ps\t(.*), %zmm\d+, %(zmm\d+)$")


def print_unit(unit):
    """The register tile of this process, and the text of the unit's product."""
    text = context.product(np.dtype("float32"), unit).assembly()
    print(json.dumps({"isa": blocking.ISA._asdict(), "text": text}))


@pytest.fixture
def unit_product(fresh):
    """``unit_product(unit)``: (the code of each innermost loop, all code in loops, all code, the register tile)."""

    def call(unit):
        if platform.machine() not in ("x86_64", "AMD64"):
            pytest.skip("not an x86-64")
        name, features = CPUS[unit]
        environment = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": ",".join(f"+{feature}" for feature in features)}
        printed = json.loads(fresh(print_unit, unit, FASTBP_CACHE="0", **environment).stdout)
        blocks = basic_blocks(printed["text"], X86)
        bodies = loops(blocks)
        innermost = [code_of(blocks, body) for body in bodies if not any(other < body for other in bodies)]
        lines = [line for block in blocks for line in block.code]
        return innermost, code_of(blocks, set().union(*bodies)), lines, printed["isa"]

    return call


def test_dot_products_of_pairs(unit_product):
    """Tiles of C stay in registers; each vector of the right factor and each pair of the left one is read once."""
    innermost, around, _, isa = unit_product("avx512-bf16")
    assert not [line for line in around if X86.stack.search(line) and "%zmm" in line and X86.store.match(line)]
    # Full, tail and single rows, of two vectors and of one.
    shapes = {rows * vectors: (rows, vectors) for rows in (isa["mr"], isa["mr_tail"], 1) for vectors in (1, 2)}
    seen = []
    for code in innermost:
        dots = [match for line in code if (match := DOT.match(line))]
        if dots:
            on_stack = [line for line in code if X86.stack.search(line)]
            assert not [line for line in on_stack if X86.vector.search(line) or X86.store.match(line)]
            seen.append(len({match[2] for match in dots}))
            loads = sum("{1to16}" in match[1] for match in dots)
            loads += sum(line.startswith(("\tvmovups", "\tvbroadcastss")) for line in code)
            assert loads == len(dots) // seen[-1] * sum(shapes[seen[-1]])
    assert sorted(seen) == sorted(shapes)


def test_tiles(unit_product):
    """Four dot products for four loads, tiles that are neither stored nor loaded again in a loop over terms."""
    innermost, around, lines, _ = unit_product("amx")
    counts = []
    for code in innermost:
        found = {name: sum(map(bool, map(pattern.match, code))) for name, pattern in TILE_LINES.items()}
        if found["tdpbf16ps"]:
            assert not found["tilestored"] + found["tilezero"], found
            counts.append((found["tdpbf16ps"], found["tileloadd"]))
            assert not [line for line in code if "mm" in line and "tmm" not in line], "vectors beside the tiles"
    # Of 2 x 2 tiles, 1 x 2 and 2 x 1, and one; LLVM may take some terms at once.
    assert {dots / loads for dots, loads in counts} == {4 / 4, 2 / 3, 1 / 2}
    of_tiles = [line for line in lines if "%tmm" in line]
    assert not [line for line in of_tiles if X86.stack.search(line)]
    configured = [line for line in lines if line.startswith(("\tldtilecfg", "\ttilerelease"))]
    assert [line.split()[0] for line in configured] == ["ldtilecfg", "tilerelease"]
    assert not [line for line in configured if line in around]


# -------------------------------------------------------------------------------------- exponentials
def print_exponentials():
    """The register tile of this process, and the text of kernels that are made of exponentials, float32."""
    single = np.dtype("float32")
    kernels = {name: context.activation_forward(single, name) for name in ("sigmoid", "tanh", "silu")}
    kernels |= {"softmax": context.softmax(single)}
    texts = {name: kernel.assembly() for name, kernel in kernels.items()}
    print(json.dumps({"isa": blocking.ISA._asdict(), "texts": texts}))


@pytest.mark.parametrize("instruction_set", ["AVX-512", "AVX2"])
def test_exponentials(fresh, instruction_set):
    """Whole registers, so many side by side as fit: with 32 of them none is stored to the stack and read again."""
    environment = x86_environment(instruction_set)
    printed = json.loads(fresh(print_exponentials, **environment).stdout)
    isa = printed["isa"]
    assert isa["name"] == instruction_set
    for name, text in printed["texts"].items():
        codes, _ = loops_over_k(text, X86)
        counts = []
        for code in codes:
            widths = [match[1] for line in code if (match := X86.multiply_add.match(line))]
            assert set(widths) <= set(WIDTHS[isa["vector_bytes"]]), name
            counts.append(len(widths))
            stored = [line for line in code if X86.stack.search(line) and X86.store.match(line)]
            if instruction_set == "AVX-512":
                assert not [line for line in stored if X86.vector.search(line)], name
        assert max(counts) >= 7 * isa["tall"], name  # those of an exponential, not masked, of rows side by side


# ------------------------------------------------------------------------------------------- updates
def print_updates():
    """The register tile of this process, and the text of every optimizer for each dtype."""
    texts = {
        f"{name} {dtype}": context.optimizer(np.dtype(dtype), name).assembly()
        for name in layout.OPTIMIZERS
        for dtype in DTYPES
    }
    print(json.dumps({"isa": blocking.ISA._asdict(), "texts": texts}))


def test_updates(fresh):
    """Whole registers, and none of them on the stack in a loop over parameters."""
    printed = json.loads(fresh(print_updates).stdout)
    isa = printed["isa"]
    if isa["name"] == "generic":
        pytest.skip("no fused multiply-add")
    dialect = ARM if isa["name"] == "NEON" else X86
    for name, text in printed["texts"].items():
        codes, _ = loops_over_k(text, dialect)
        assert codes, name
        for code in codes:
            widths = {match[1] for line in code if (match := dialect.multiply_add.match(line))}
            assert widths <= set(WIDTHS[isa["vector_bytes"]]), name
            assert not [line for line in code if dialect.stack.search(line) and dialect.vector.search(line)], name


# -------------------------------------------------------------------------------------------- symbols
# What the C wrapper that Numba puts around a kernel refers to; all of it is there when Numba is imported.
OF_THE_WRAPPER = re.compile(
    r"Py\w+|numba_(gil_ensure|gil_release|unpickle|do_raise|runtime_build_excinfo_struct)|_GLOBAL_OFFSET_TABLE_"
)
FUNCTION = 2


def symbols(object_code):
    """(functions defined, names undefined) of an ELF object."""
    sections = {section.name(): section.data() for section in llvm.ObjectFileRef.from_data(object_code).sections()}
    functions, undefined = [], []
    for name, info, _, section, _, _ in struct.iter_unpack("<IBBHQQ", sections[b".symtab"]):
        text = sections[b".strtab"][name : sections[b".strtab"].index(b"\0", name)].decode()
        if text and section == 0:
            undefined.append(text)
        elif info & 15 == FUNCTION:
            functions.append(text)
    return functions, undefined


def check_symbols(directory):
    from fastbp.kernels import disk

    files = list(directory.rglob("*.kernel"))
    assert files
    for path in files:
        _, symbol, object_code, _ = disk.read_entry(path)
        functions, undefined = symbols(object_code)
        assert not [name for name in undefined if not OF_THE_WRAPPER.fullmatch(name)], path
        # The kernel and its wrapper: a helper of its own could meet another kernel's of the same name.
        assert len(functions) <= 2, path
        assert symbol.decode() in functions


elf_only = pytest.mark.skipif(platform.system() != "Linux", reason="reads ELF")


@elf_only
def test_kernels_call_no_library(warm_cache):
    check_symbols(warm_cache)


@elf_only
def test_kernels_call_no_library_where_nothing_is_fused(warmed):
    check_symbols(warmed("float32", **x86_environment("generic")))
