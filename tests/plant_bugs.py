"""Plants bugs in a copy of the package, one at a time, and sees which tests notice: ``python tests/plant_bugs.py``.

The tests are worth what they catch. Every row of BUGS is a mistake that somebody could make; some test of those
named must fail with it, and all must pass without it. A text that is no longer in its file is an error: then the
row is to be brought up to date; test_planted_bugs.py looks for them. Arguments are parts of the titles of rows to
run; ``--sample N --seed S`` runs N of them, the same for the same seed.
"""

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
CONTRACT = "tests/contract/test_contract.py"


class Bug(NamedTuple):
    title: str
    file: str
    old: str
    new: str
    tests: str  # a file, and what -k selects in it
    chance: bool = False  # caught only when threads meet at the wrong moment
    tall: bool = False  # shows only where a tile has more than GROUP rows: AVX-512, NEON

    def plant(self, package):
        """Replace the old text by the new one, in a copy of the package."""
        path = package / "fastbp" / self.file
        text = path.read_text()
        if text.count(self.old) != 1:
            raise SystemExit(f"{self.title}: this is {text.count(self.old)} times in {self.file}:\n{self.old}")
        path.write_text(text.replace(self.old, self.new))


GEMM, MICROKERNEL, SIMD = "kernels/cpu/gemm.py", "kernels/cpu/microkernel.py", "kernels/cpu/simd.py"
LINEAR, ELEMENTWISE, NETWORK = "kernels/cpu/linear.py", "kernels/cpu/elementwise.py", "kernels/cpu/network.py"
BUFFERS, WORKSPACES = "kernels/cpu/buffers.py", "kernels/cpu/workspaces.py"
FORMATS, UNITS = "kernels/cpu/formats.py", "tests/test_units.py"
GRAPH, CPU, PROGRAM, NORMS = (
    "backpropagation.py", "kernels/cpu/__init__.py", "kernels/program.py", "kernels/cpu/norms.py"
)  # fmt: skip
PROBABILITIES = "kernels/cpu/probabilities.py"
CUDA_NETWORK = "kernels/cuda/network.py"
CUDA_GEMM, TENSOR_CORES = "kernels/cuda/gemm.py", "kernels/cuda/tensor_cores.py"
CUDA_TESTS = "tests/cuda/test_gemm.py"
WGMMA, WARPGROUP, PANELS = "kernels/cuda/wgmma.py", "kernels/cuda/warpgroup.py", "kernels/cuda/panels.py"
MMA, PANEL_TILES = "kernels/cuda/mma.py", "kernels/cuda/panel_tiles.py"
WGMMA_TESTS = "tests/cuda/test_emulator.py -k 'products_of_stored and pipeline'"
CLUSTER, CLUSTER_TESTS = "kernels/cuda/cluster.py", "tests/cuda/test_emulator.py -k test_clusters"
LOSSES, TEAM = "kernels/cpu/losses.py", "kernels/cpu/team.py"
DISK, JIT = "kernels/disk.py", "kernels/jit.py"
PREPROCESSING, FITTING, LEARNING = "tabular/preprocessing.py", "tabular/fitting.py", "tabular/learning.py"
ACTIVATIONS, ELEMENTARY, UPDATES = "kernels/activations.py", "kernels/elementary.py", "kernels/updates.py"

RANKS, SHARDS = "ranks.py", "shards.py"

BUGS = [
    # -------------------------------------------------------------------------------------- ranks
    Bug(
        "ranks are averaged, however many rows each has",
        SHARDS, "tail[WEIGHT] = counts.sum() / self.shard.unit", "tail[WEIGHT] = 1.0",
        "tests/test_distributed.py -k train_as_one_process",
    ),
    Bug(
        "dropout counts the rows of each rank from 0",
        SHARDS, "self.first = int(befores.sum() + lengths[: ranks.rank].sum())", "self.first = int(befores.sum())",
        "tests/test_distributed.py -k train_as_one_process",
    ),
    Bug(
        "moments are those of the own rows",
        SHARDS, "communicator.allreduce_(second)", "second *= self.ranks.size",
        "tests/test_distributed.py -k train_as_one_process",
    ),
    Bug(
        "every rank stops when it likes",
        RANKS, "return bool(decision[0])", "return stopped",
        "tests/test_distributed.py -k rank_0_decides",
    ),
    Bug(
        "a Ctrl-C is not told to the others",
        SHARDS, "interrupts.came |= bool(tail[STOP] > 0)", "interrupts.came |= ranks.interrupts.asked",
        "tests/test_distributed.py -k ctrl_c",
    ),
    Bug(
        "a part of the gradient is not reduced",
        SHARDS, "self.ranks.communicator.allreduce_(self.buffer)\n",
        "self.ranks.communicator.allreduce_(self.buffer[64:])\n",
        "tests/test_distributed.py -k 'train_as_one_process and frozen'",
    ),
    Bug(
        "steps inside the kernels average ranks, however many rows each has",
        CPU, "    share = scale = 1 / total if", "    share = scale = 0.5 / max(count, 1) if",
        "tests/test_distributed.py -k 'train_as_one_process and without'",
    ),
    Bug(
        "ranks do not clip the gradient of all of them",
        SHARDS, "parameters.clip(self.kernels, self.places, self.gradient, np.asarray, self.clip_norm)", "pass",
        "tests/test_distributed.py -k 'train_as_one_process and clip'",
    ),
    Bug(
        "the last rows of a weight are left out of the update by a reduced gradient",
        NETWORK, "record, coefficients, values + item * row * ld, min(height, rows - row), columns, ld,",
        "record, coefficients, values + item * row * ld, min(height, rows - row - 1), columns, ld,",
        f"{CONTRACT} -k 'cpu and what_the_exchange_leaves'",
    ),
    Bug(
        "the stored gradient of a block of a weight lies where the first one does",
        NETWORK, "gradient = Matrix(frame[program.PARAMETER_GRADIENTS] + at_weight, ld)",
        "gradient = Matrix(frame[program.PARAMETER_GRADIENTS] + weight[OFFSET], ld)",
        f"{CONTRACT} -k 'cpu and exchanges_nothing'",
    ),
    Bug(
        "statistics learn from a batch whose loss is not finite on another rank",
        CPU, "    finite = math.isfinite(buffer[size])\n", "    finite = math.isfinite(workspace.results[0][0])\n",
        f"{CONTRACT} -k 'cpu and finite_elsewhere'",
    ),
    Bug(
        "an order of a function is each rank's own",
        SHARDS, 'return self.ranks.shared(None, told)[1]["order"]',
        "return data.epoch_rows(model._kernels, model.generator, self.places, shuffle, None, epoch)",
        "tests/test_distributed.py -k 'order_is_that_of_the_function'",
    ),
    # -------------------------------------------------------------------------------------- tables
    Bug(
        "a notebook is where IPython has been imported",
        "callbacks.py", "if _in_notebook():", 'if "IPython" in sys.modules:',
        "tests/test_training.py -k bar_in_a_notebook",
    ),
    Bug(
        "a command broken in two is two commands",
        "cli/terminal.py", 'self.item(label, text, "bold", " \\\\")', 'self.item(label, text, "bold")',
        "tests/test_cli.py -k narrow",
    ),
    Bug(
        "statistics are learned from all rows of a table",
        FITTING, "(name, kind, values.take(rows)) for", "(name, kind, values) for",
        "tests/test_tabular.py -k training_rows",
    ),
    Bug(
        "a gap is a category of its own",
        "tabular/columns.py", "np.where(values.missing, fill, values.texts())", "values.texts()",
        "tests/test_tabular.py -k scikit_learn",
    ),
    Bug(
        "a row's own target is in its inputs",
        FITTING, ".fit(texts[others], numbers[others])", ".fit(texts, numbers)",
        "tests/test_tabular.py -k its_own",
    ),
    Bug(
        "parts of a table take the means of the target of the first rows",
        LEARNING, "rows = self.sample[first:last] - start", "rows = self.sample[first:last] - start - 1",
        "tests/test_cli.py -k means_of_the_target",
    ),
    Bug(
        "a range of rows begins with that of its row group",
        "tabular/stored.py", "skip, left = start - before, stop - start", "skip, left = 0, stop - start",
        "tests/test_tabular_stored.py -k range_of_rows",
    ),
    Bug(
        "counts are predicted by their logarithm",
        "tabular/target.py", 'np.exp(values) if self.link == "log" else values', "values",
        "tests/test_cli.py -k poisson_loss",
    ),
    Bug(
        "named columns are taken by position",
        PREPROCESSING, "if not self.given or (self.named and found.named):", "if not self.given:",
        "tests/test_tabular.py -k raw_columns",
    ),
    Bug(
        "the names that pandas gives an array are data",
        "tabular/text.py", "[str(i) for i in range(len(first))]", "[str(i) for i in range(1, 1 + len(first))]",
        "tests/test_tabular.py -k names_of_columns",
    ),
    Bug(
        "blanks in a column of numbers make it text",
        "tabular/text.py", "        if blanks:\n", "        if False:\n",
        "tests/test_tabular.py -k dialects",
    ),
    Bug(
        "options of reading are advised for a file that has types",
        "tabular/kinds.py", "options if source.text else change", "options",
        "tests/test_tabular.py -k kind_of_file",
    ),
    Bug(
        "an empty text of Parquet is a category",
        "tabular/arrow.py", "blank.to_numpy().astype(bool))", "missing)",
        "tests/test_tabular.py -k test_frames",
    ),
    Bug(
        "a value beyond the network's numbers is predicted as no number",
        PREPROCESSING, "if len(beyond):", "if False:",
        "tests/test_tabular.py -k cannot_hold",
    ),
    Bug(
        "codes that begin with 0 are numbers",
        "tabular/text.py", "if whole and len(", "if not whole and len(",
        "tests/test_tabular.py -k dialects",
    ),
    Bug(
        "predictions lose the rows with a gap",
        "cli/predict.py", "tabular.Column(predicted, gaps)", "tabular.Column(predicted[~gaps], gaps[~gaps])",
        "tests/test_cli.py -k keeps_its_line",
    ),
    Bug(
        "a confusion matrix lies on its side",
        "metrics.py", "labels * classes + predicted", "predicted * classes + labels",
        "tests/test_metrics.py",
    ),
    Bug(
        "ties count for nothing in the ROC AUC",
        "metrics.py", "last - (counts - 1) / 2", "last - 0 * counts",
        "tests/test_metrics.py",
    ),
    # ----------------------------------------------------------------------------------- precisions
    Bug(
        "rounding to bfloat16 cuts bits off",
        SIMD, "b.and_(b.add(b.add(bits, constant(0x7FFF)), odd), constant(0xFFFF0000))",
        "b.and_(bits, constant(0xFFFF0000))",
        f"{CONTRACT} -k 'cpu and linear_forward and rounded'",
    ),
    Bug(
        "ties go away from 0 in bfloat16",
        SIMD, "b.add(b.add(bits, constant(0x7FFF)), odd)", "b.add(bits, constant(0x8000))",
        f"{CONTRACT} -k 'cpu and linear_forward and rounded'",
    ),
    Bug(
        "NaN is rounded to bfloat16 as a number is",
        SIMD, 'b.select(b.fcmp_unordered("uno", v, v), v, b.bitcast(nearest, x.vector))',
        "b.bitcast(nearest, x.vector)",
        f"{CONTRACT} -k 'cpu and linear_forward and rounded'",
    ),
    Bug(
        "the low part of a factor is dropped",
        ELEMENTWISE, "nearest_bfloat16(whole - upper)", "nearest_bfloat16(whole - whole)",
        f"{CONTRACT} -k 'cpu and linear_forward and rounded'",
    ),
    Bug(
        "the order of the products of low parts depends on the number of rows",
        LINEAR, "a_low, grad_low, 1, zero", "a_low, grad_low, 0, zero",
        "tests/test_precision.py -k few_rows",
    ),
    Bug(
        "a weight is not stored anew after its update",
        NETWORK, "    if record[STORE_FACTOR]:\n        store_weight(",
        "    if not record[STORE_FACTOR]:\n        store_weight(",
        "tests/test_precision.py -k many_calls",
    ),
    Bug(
        "what was stored of the weights before a call counts in training",
        NETWORK, "    if record[STORE_FACTOR]:\n        store_weights(record, thread)\n        passed += 1\n",
        "    if record[STORE_FACTOR]:\n        passed += 1\n",
        "tests/test_precision.py -k somebody_changes",
    ),
    Bug(
        "what was stored of the weights before a call counts in prediction",
        NETWORK, "        store_weights(record, thread)\n        barrier(record, 1)\n", "        barrier(record, 1)\n",
        "tests/test_precision.py -k somebody_changes",
    ),
    Bug(
        "the gradient of a bias is a sum of rounded numbers",
        NETWORK, "exact = from_column(frame, instruction, 6", "exact = from_column(frame, instruction, 1",
        "tests/test_precision.py -k single_products",
    ),
    Bug(
        "a gradient is stored before the last that writes it",
        PROGRAM, "written[operand.buffer, operand.offset] = number",
        "written.setdefault((operand.buffer, operand.offset), number)",
        "tests/test_precision.py -k 'single_products or once_between'",
    ),
    # ---------------------------------------------------------------------------- units of bfloat16
    Bug(
        "tiles at the right edge of a product are stored whole",
        "kernels/cpu/gemm_amx.py", "rows == BLOCK and columns == BLOCK, c", "rows == BLOCK, c",
        f"{UNITS} -k 'manual or beyond'",
    ),
    Bug(
        "of a bias only the first tile of columns has its own",
        "kernels/cpu/gemm_amx.py", "load_tile(1, origin.bias + SIDE, 0)", "load_tile(1, origin.bias, 0)",
        f"{UNITS} -k manual",
    ),
    Bug(
        "the last panel of vdpbf16ps begins where the one before it does",
        "kernels/cpu/gemm_avx512.py", "j // CHUNK * apart + j % CHUNK", "j // CHUNK * apart",
        f"{UNITS} -k manual",
    ),
    Bug(
        "a term beyond the last row of a batch is what memory held",
        FORMATS, "(left + 1) // 2, left // 2, columns - j", "(left + 1) // 2, (left + 1) // 2, columns - j",
        f"{UNITS} -k 'forms or manual'",
    ),
    Bug(
        "on tiles the product with a low part takes the high one",
        "kernels/cpu/gemm_amx.py", "                y = low.b\n", "                y = b.data\n",
        f"{UNITS} -k manual",
    ),
    Bug(
        "stacked panels are as far from each other as those that lie side by side",
        FORMATS, "* PANEL if ld == PAIRS else PANEL", "* PANEL if ld == 0 else PANEL",
        f"{UNITS} -k 'forms or manual'",
    ),
    Bug(
        "the other way round a weight keeps its first values",
        FORMATS, "            if place[7]:\n", "            if place[7] and row == 0:\n",
        f"{UNITS} -k single_products",
    ),
    Bug(
        "NaN becomes infinity where its bits are below those of bfloat16",
        "kernels/cpu/pairs.py", "b.or_(bits, constant(bits, QUIET))", "bits",
        f"{UNITS} -k usual",
    ),
    Bug(
        "a thread begins within 32 rows of another",
        WORKSPACES, "row_unit, row_block, capacity = formats.CHUNK,", "row_unit, row_block, capacity = 2,",
        f"{UNITS} -k threads_change",
    ),
    Bug(
        "blocks of a gradient begin within a panel",
        "kernels/cpu/blocking.py", "PAIRS_COLUMNS = 512", "PAIRS_COLUMNS = 48",
        f"{UNITS} -k single_products",
    ),
    Bug(
        "what stores a factor is taken for a function of the contract when several ranks train",
        WORKSPACES, " if i.operation != factors.STORE]", "]",
        f"{UNITS} -k ranks",
    ),
    Bug(
        "tile registers are used without asking the system",
        "kernels/cpu/units.py", "        if has_tiles(unit):\n", "        if not has_tiles(unit):\n",
        f"{UNITS} -k system",
    ),
    # ------------------------------------------------------------------------------------ products
    Bug(
        "the tail of k is lost, as by a loop unrolled by 4",
        GEMM, "terms = min(depth, k - start)", "terms = min(depth, k - start) // 4 * 4",
        f"{CONTRACT} -k 'cpu and linear_forward'",
    ),
    Bug(
        "padding of the rows of A is relied on: k rounded up",
        GEMM, "terms = min(depth, k - start)", "terms = min(depth, (k - start + 3) // 4 * 4)",
        f"{CONTRACT} -k 'cpu and linear_forward'",
    ),
    Bug(
        "the mask of the last columns is one too wide",
        SIMD, 'b.icmp_signed("<", ir.Constant(index, list(', 'b.icmp_signed("<=", ir.Constant(index, list(',
        f"{CONTRACT} -k 'cpu and linear_forward'",
    ),
    Bug(
        "the mask of the last columns is one too narrow",
        SIMD, "list(range(j * ty.lanes, (j + 1) * ty.lanes))), limit)",
        "list(range(1 + j * ty.lanes, 1 + (j + 1) * ty.lanes))), limit)",
        f"{CONTRACT} -k 'cpu and linear_forward'",
    ),
    Bug(
        "the last row is lost",
        MICROKERNEL, "elif m > 0:", "elif m > 1:",
        f"{CONTRACT} -k 'cpu and linear_forward'",
    ),
    Bug(
        "the last vector of a wide rest is not masked",
        SIMD, "full, columns = ty.vectors - 1,", "full, columns = ty.vectors,",
        f"{CONTRACT} -k 'cpu and linear_forward'",
    ),
    Bug(
        "blocks of k do not continue what is in C",
        GEMM, "origin.kind if start == 0 else FROM_OUTPUT", "origin.kind",
        f"{CONTRACT} -k 'cpu and linear_forward'",
    ),
    Bug(
        "the transposed panel has no tail",
        GEMM, "for i in range(0, k, block):", "for i in range(0, k - block + 1, block):",
        f"{CONTRACT} -k 'cpu and linear_backward_input'",
    ),
    Bug(
        "packing: a strip of A one short",
        GEMM, "for i in range(0, rows, MR):", "for i in range(0, rows - MR, MR):",
        "tests/contract/test_packing.py -k 'no_bit and TN'",
    ),
    Bug(
        "packing: the panel of B that lies there is the first one's",
        GEMM, "zeros(panel, 1, NV), terms, source, b.ld", "zeros(panel, 1, NV), terms, b.data + start * b.ld, b.ld",
        "tests/contract/test_packing.py -k 'no_bit and NN'",
    ),
    Bug(
        "packing: the edge of the last strip is read beyond",
        GEMM, "a.step, target, MR, rows - i)", "a.step, target, MR, None)",
        "tests/contract/test_packing.py -k stays_inside",
    ),
    Bug(
        "packing: strips have no room for what is written beyond their last term",
        GEMM, "(terms * MR + vector + 15) // 16 * 16 + 16", "terms * MR",
        "tests/contract/test_packing.py -k 'no_bit and TN'",
    ),
    Bug(
        "packing: a panel that is kept is overwritten by the next one",
        GEMM, "place += kept", "place += 0",
        "tests/contract/test_packing.py -k 'no_bit and NT'",
    ),
    Bug(
        "packing: kept panels are those of the first terms",
        GEMM, "again = min(height, m - i), kept and i", "again = min(height, m - i), kept and i + start",
        "tests/contract/test_packing.py -k 'no_bit and NN'",
    ),
    Bug(
        "packing: two low tiles in place of one of MR rows and a rest read past the end of a strip",
        MICROKERNEL, "SPLITS and apart == MR * a.ld", "SPLITS",
        "tests/contract/test_packing.py -k 'no_bit and TN'",
    ),
    Bug(
        "the terms that a loop of whole turns leaves are left out",
        MICROKERNEL, "k %= TURN", "k = 0",
        f"{CONTRACT} -k 'cpu and linear_forward'",
    ),
    Bug(
        "the activation is applied after every block of k",
        GEMM, "if last and finish.kernel:", "if finish.kernel:",
        f"{CONTRACT} -k 'cpu and linear_forward'",
    ),
    Bug(
        "the epilogue takes what was saved from the first block of rows",
        GEMM, "finish.other + i * finish.ld + j", "finish.other + j",
        f"{CONTRACT} -k 'cpu and linear_backward_input'",
    ),
    Bug(
        "an output with beta = 0 is read",
        LINEAR, "origin = Origin(beta, 0)", "origin = Origin(1, 0)",
        f"{CONTRACT} -k 'cpu and linear_backward_params'",
    ),
    Bug(
        "a sum of columns with beta = 0 reads its output",
        ELEMENTWISE, "    if beta:\n        rest += load_row", "    if True:\n        rest += load_row",
        f"{CONTRACT} -k 'cpu and linear_backward_params'",
    ),
    Bug(
        "the sum of columns misses the last row",
        ELEMENTWISE, "for i in range(whole, rows):\n        rest += load_row",
        "for i in range(whole, rows - 1):\n        rest += load_row",
        f"{CONTRACT} -k 'cpu and linear_backward_params'",
    ),
    Bug(
        "the sum of columns has one chain for a vector of four rows",
        ELEMENTWISE, "total += load(total, z + i * ldz, ldz, columns)",
        "total += load(total, z + i * ldz, 0, columns)",
        f"{CONTRACT} -k 'cpu and linear_backward_params'",
    ),
    Bug(
        "the last panel of a sum of columns is written whole",
        ELEMENTWISE, "rows, z + j, ldz, beta, out + j, columns - j)", "rows, z + j, ldz, beta, out + j, columns)",
        f"{CONTRACT} -k 'cpu and linear_backward_params'",
    ),
    Bug(
        "an even row of A is read where an odd one is",
        SIMD, "offsets.append(b.mul(odd[i // power], I64(power)))", "offsets.append(odd[i // power])",
        f"{CONTRACT} -k 'cpu and linear_forward'",
    ),
    Bug(
        "the second group of rows of A begins in the first",
        SIMD, "b.mul(b.extract_value(offsets, GROUP // 2), I64(2))", "b.extract_value(offsets, GROUP // 2)",
        f"{CONTRACT} -k 'cpu and linear_forward'", tall=True,
    ),
    Bug(
        "swapped input gradient: every block of rows is that of the first rows of the weight",
        LINEAR, "weight.data + skipped", "weight.data",
        f"{CONTRACT} -k 'cpu and linear_backward_input'",
    ),
    Bug(
        "swapped input gradient: every block is written to the first",
        LINEAR, "block = out.data + item * i", "block = out.data",
        f"{CONTRACT} -k 'cpu and linear_backward_input'",
    ),
    Bug(
        "swapped input gradient: every block takes what was saved from the first",
        LINEAR, "saved.data + item * i, saved.ld", "saved.data, saved.ld",
        f"{CONTRACT} -k 'cpu and linear_backward_input'",
    ),
    Bug(
        "swapped input gradient: rows of the scratch are too short",
        LINEAR, "Matrix(scratch, (n + 15) // 16 * 16)", "Matrix(scratch, n // 16 * 16)",
        f"{CONTRACT} -k 'cpu and linear_backward_input'",
    ),
    Bug(
        "swapped input gradient without its derivative",
        LINEAR, "            if finish:\n", "            if finish and fan_in > MC:\n",
        f"{CONTRACT} -k 'cpu and linear_backward_input'",
    ),
    Bug(
        "few classes: a square that lacks rows is read as one that has all",
        PROBABILITIES, "if rows == lanes(z):", "if rows > 0:",
        "tests/contract/test_memory.py",
    ),
    Bug(
        "few classes: a square that lacks one row is written as one that has all",
        PROBABILITIES, "if rows == lanes(out):", "if rows >= lanes(out) - 1:",
        f"{CONTRACT} -k 'cpu and loss_forward_backward'",
    ),
    Bug(
        "few classes: labels beyond the last are a class",
        LOSSES, " or any_lane(label >= columns):", ":",
        f"{CONTRACT} -k 'cpu and loss_forward_backward'",
    ),
    Bug(
        "few classes: negative labels are a class",
        LOSSES, "if any_lane(label < 0.0) or ", "if ",
        f"{CONTRACT} -k 'cpu and loss_forward_backward'",
    ),
    Bug(
        "the gradient of a narrow weight ignores beta",
        LINEAR, "Origin(beta, 0), c, 0", "Origin(FROM_ZERO, 0), c, 0",
        f"{CONTRACT} -k 'cpu and linear_backward_params'",
    ),
    Bug(
        "the gradient of a narrow weight grows from what is in the scratch",
        LINEAR, "        if beta:\n", "        if beta > 1:\n",
        f"{CONTRACT} -k 'cpu and linear_backward_params'",
    ),
    Bug(
        "the gradient of a narrow weight reads grad_z by the wrong stride",
        LINEAR, "Strided(grad_z.data, 1, grad_z.ld)", "Strided(grad_z.data, 1, fan_out)",
        f"{CONTRACT} -k 'cpu and linear_backward_params'",
    ),
    Bug(
        "the transpose has no last rows",
        ELEMENTWISE, "for i in range(0, rows, side):", "for i in range(0, rows - side + 1, side):",
        f"{CONTRACT} -k 'cpu and linear_backward_params'",
    ),
    Bug(
        "the transpose writes whole squares",
        ELEMENTWISE, "ldo, rows - i, columns - j)", "ldo, side, side)",
        f"{CONTRACT} -k 'cpu and linear_backward_params'",
    ),
    Bug(
        "the transpose reads the shape of its output",
        ELEMENTWISE, "ldx, columns - j, rows - i)", "ldx, rows - i, columns - j)",
        f"{CONTRACT} -k 'cpu and linear_backward_params'",
    ),
    Bug(
        "a register tile larger than the registers",
        "kernels/cpu/blocking.py", '"avx2", 32, 6, 4, 2, 2, "fma"', '"avx2", 32, 8, 2, 2, 2, "fma"',
        "tests/test_assembly.py -k 'product and AVX2'",
    ),
    # -------------------------------------------------------------------------- activations and losses
    Bug(
        "the fifth digit of a coefficient of exp, float32",
        ELEMENTARY, "0.16666576266288757", "0.16667576266288757",
        f"{CONTRACT} -k 'cpu and activation_forward'",
    ),
    Bug(
        "the fifth digit of a coefficient of exp, float64",
        ELEMENTARY, "T13 = T[2:]", "T13 = T[2:]\nT5 *= 1.00001",
        f"{CONTRACT} -k 'cpu and activation_forward'",
    ),
    Bug(
        "an activation leaves out the rows after the last four",
        ELEMENTWISE, "else 0, rows):\n            z, out", "else 0, high):\n            z, out",
        f"{CONTRACT} -k 'cpu and activation_forward'",
    ),
    Bug(
        "an activation leaves out the last columns of four rows",
        ELEMENTWISE, "for i in range(high if whole == columns else 0, rows):\n            z, out",
        "for i in range(high, rows):\n            z, out",
        f"{CONTRACT} -k 'cpu and activation_forward'",
    ),
    Bug(
        "an activation writes four rows as far apart as those it reads",
        ELEMENTWISE, "parameter), out + j, ld_other, None)", "parameter), out + j, ldc, None)",
        f"{CONTRACT} -k 'cpu and activation_forward'",
    ),
    Bug(
        "an activation of whole vectors leaves out the rows after the last four",
        ELEMENTWISE, "for i in range(high if whole == columns else 0, rows):\n            z, out",
        "for i in range(rows if whole == columns else 0, rows):\n            z, out",
        f"{CONTRACT} -k 'cpu and activation_forward'",
    ),
    Bug(
        "a derivative of whole vectors leaves out the rows after the last four",
        ELEMENTWISE, "for i in range(high if whole == columns else 0, rows):\n            grad, saved",
        "for i in range(rows if whole == columns else 0, rows):\n            grad, saved",
        f"{CONTRACT} -k 'cpu and activation_backward'",
    ),
    Bug(
        "a derivative leaves out the rows after the last four",
        ELEMENTWISE, "else 0, rows):\n            grad, saved", "else 0, high):\n            grad, saved",
        f"{CONTRACT} -k 'cpu and activation_backward'",
    ),
    Bug(
        "a derivative leaves out the last columns of four rows",
        ELEMENTWISE, "for i in range(high if whole == columns else 0, rows):\n            grad, saved",
        "for i in range(high, rows):\n            grad, saved",
        f"{CONTRACT} -k 'cpu and activation_backward'",
    ),
    Bug(
        "a derivative reads four saved rows as far apart as those of the gradient",
        ELEMENTWISE, "saved + j, ld_other, None), parameter)", "saved + j, ldc, None), parameter)",
        f"{CONTRACT} -k 'cpu and activation_backward'",
    ),
    Bug(
        "a run of memory that four rows do not divide loses its end",
        ELEMENTWISE, " and rows * columns % TALL == 0:", ":",
        f"{CONTRACT} -k 'cpu and activation_forward'",
    ),
    Bug(
        "a block is taken for one run of memory though its output is not",
        ELEMENTWISE, "if ldc == columns and ld_other == columns and", "if ldc == columns and",
        f"{CONTRACT} -k 'cpu and activation_forward'",
    ),
    Bug(
        "ReLU makes 0 of NaN",
        ACTIVATIONS, "return select(z <= 0.0, 0.0, z)", "return select(z > 0.0, z, 0.0)",
        f"{CONTRACT} -k 'cpu and activation_forward'",
    ),
    Bug(
        "a softmax takes lanes beyond the row for columns",
        PROBABILITIES, "tail, MINUS_INFINITY) - shift)", "tail, 0.0) - shift)",
        f"{CONTRACT} -k 'cpu and softmax'",
    ),
    Bug(
        "the largest of a row is looked for in its first vector",
        PROBABILITIES, "for j in range(width, columns, width):", "for j in range(width, width, width):",
        f"{CONTRACT} -k 'cpu and softmax'",
    ),
    Bug(
        "a softmax leaves out the rows after the last that lie side by side",
        PROBABILITIES, "for i in range(high, rows):", "for i in range(high, high):",
        f"{CONTRACT} -k 'cpu and softmax'",
    ),
    Bug(
        "the last few rows of a transposed softmax are written as if they were a square",
        PROBABILITIES, "count = min(width, rows - i)", "count = width",
        f"{CONTRACT} -k 'cpu and softmax'",
    ),
    Bug(
        "a softmax of few columns subtracts the first of them",
        PROBABILITIES, "for j in range(1, columns):", "for j in range(1, 1):",
        f"{CONTRACT} -k 'cpu and softmax'",
    ),
    Bug(
        "a sigmoid of -inf is not 0",
        ACTIVATIONS, "select(z < lowest, 0.0, 1.0 / (fma(s, q, s) + 1.0))", "1.0 / (fma(s, q, s) + 1.0)",
        f"{CONTRACT} -k 'cpu and activation_forward-sigmoid'",
    ),
    Bug(
        "a hit is a label as large as the largest, not the first of them",
        LOSSES, "hit = of_label == 0.0 and first_largest(label, logits, shift)", "hit = of_label == 0.0",
        f"{CONTRACT} -k 'cpu and loss_forward_backward'",
    ),
    Bug(
        "the last of the largest outputs is the guess, few classes",
        LOSSES, "guess = select(z > largest, c, guess)", "guess = select(z >= largest, c, guess)",
        f"{CONTRACT} -k 'cpu and loss_forward_backward'",
    ),
    Bug(
        "lanes beyond the columns count in a loss",
        LOSSES, "total += select(first_lanes(total, tail), value, 0.0)", "total += value",
        f"{CONTRACT} -k 'cpu and loss_forward_backward'",
    ),
    Bug(
        "the slope of Mish above 0 takes an exponential for its square",
        ACTIVATIONS, "select(z < 0.0, e, e * e) * 4.0", "e * 4.0",
        f"{CONTRACT} -k 'cpu and activation_backward-mish'",
    ),
    Bug(
        "the sign of NaN is 0",
        ELEMENTARY, "select(x < 0.0, -1.0, x)", "select(x < 0.0, -1.0, 0.0)",
        f"{CONTRACT} -k 'cpu and loss_forward_backward'",
    ),
    Bug(
        "the loss beyond Huber's delta is too large by half its square",
        "kernels/losses.py", "(size - 0.5 * delta) * delta", "size * delta",
        f"{CONTRACT} -k 'cpu and loss_forward_backward and huber'",
    ),
    Bug(
        "a Poisson loss of a count of 0 takes its logarithm",
        "kernels/losses.py", "select(counted, deviance, select(y < SMALLEST_NORMAL, mean, y))", "deviance",
        f"{CONTRACT} -k 'cpu and loss_forward_backward and poisson-not_finite'",
    ),
    Bug(
        "the large exponentials are those of half the number",
        ELEMENTARY, "select(large, e * e, e)", "e",
        f"{CONTRACT} -k 'cpu and loss_forward_backward and poisson'",
    ),
    Bug(
        "the weight of the positive class is missing in the slope",
        "kernels/losses.py", "probability - y + more * (probability - 1.0)", "probability - y",
        f"{CONTRACT} -k 'cpu and loss_forward_backward and binary_cross_entropy_with_logits'",
    ),
    Bug(
        "a quantile and its complement are exchanged",
        "kernels/losses.py", "select(error > 0.0, 1.0 - q, select(error < 0.0, -q, error))",
        "select(error > 0.0, q, select(error < 0.0, q - 1.0, error))",
        f"{CONTRACT} -k 'cpu and loss_forward_backward and quantile'",
    ),
    Bug(
        "rows without a label have the gradient of their logits, few classes",
        LOSSES, "if target.data[r] < 0 or target.data[r] >= columns:", "if target.data[r] >= columns:",
        f"{CONTRACT} -k 'cpu and rows_without'",
    ),
    Bug(
        "a step's room is announced before it is there",
        "steps.py", "        workspace = self.model.training_workspace(self.loss, self.loss.kernel(y)",
        "        self.ready = len(x), y.ndim, np.arange(len(x)), self.ready[3]\n"
        "        workspace = self.model.training_workspace(self.loss, self.loss.kernel(y)",
        "tests/test_interruptions.py -k 'train_step and compiled'",
    ),
    Bug(
        "an array is recorded before its address is",
        WORKSPACES, "self.pointed[field] = self  # no array", "self.pointed[field] = array  # no array",
        "tests/test_interruptions.py -k 'train_step and compiled or test_fit'", chance=True,
    ),
    Bug(
        "a step that was made before an interrupt is not counted",
        "steps.py", "            optimizer.step_count += finished_steps(self.step_loss, self.step_hits)\n", "",
        "tests/test_interruptions.py -k 'train_step and compiled'",
    ),
    Bug(
        "scalars computed ahead have their first step before they are there",
        "optimizers.py", "            i, ahead = 0, self.coefficients(",
        "            self._ahead = self.step_count, ahead\n            i, ahead = 0, self.coefficients(",
        "tests/test_interruptions.py -k 'numbers_of_an_optimizer'",
    ),
    Bug(
        "the graph keeps arrays that others may change",
        "graph.py", "_own(x) if records and cls.reads_inputs else x", "x",
        "tests/test_trust.py -k 'arrays_that_change'",
    ),
    Bug(
        "dropout goes by the place in a slice where rows are converted",
        "steps.py", "rows = np.stack([np.arange(len(rows)), rows + self.first])", "rows = np.arange(len(rows))",
        "tests/test_trust.py -k 'dropout_goes or dropout_does'",
    ),
    Bug(
        "threads keep their control register",
        NETWORK, 'leaves the number of steps done in the record."""\n    control = exchange_control(CONTROL)',
        'leaves the number of steps done in the record."""\n    control = CONTROL',
        "tests/test_trust.py -k 'control_register'",
    ),
    Bug(
        "a mask is dropped",
        "checks.py", "    if isinstance(value, np.ma.MaskedArray):", "    if False:",
        "tests/test_trust.py -k 'masked'",
    ),
    Bug(
        "a refused step has changed the loss",
        "model.py", "value = step(x, y)\n", "self.remember_loss(step.loss)\n        value = step(x, y)\n",
        "tests/test_trust.py -k 'refused_step'",
    ),
    Bug(
        "a label is trusted: one beyond the classes is read and written where it says, many classes",
        LOSSES, "        if label < 0 or label >= columns:", "        if label < 0:",
        f"{CONTRACT} -k 'cpu and label_that_is_no_class'",
    ),
    Bug(
        "a label beyond the classes is none of them, and no fault",
        LOSSES, "0.0 if of_rows.weight[i] == 0.0 else NAN", "0.0",
        f"{CONTRACT} -k 'cpu and label_that_is_no_class'",
    ),
    Bug(
        "ignored rows count in the mean",
        "losses.py", "weight = (target >= 0).astype(np.float64)", "weight = np.ones(len(target))",
        "tests/test_losses_optimizers.py -k 'ignored_rows'",
    ),
    Bug(
        "amsgrad keeps the last average of squares, not the largest",
        UPDATES, "select(v <= top, top, v)", "v",
        f"{CONTRACT} -k 'cpu and optimizer_step and amsgrad'",
    ),
    Bug(
        "squares of weights are summed after the update",
        NETWORK,
        """    if record[STEP_SQUARES]:
        values = record[BASES + program.PARAMETERS] + at_weight
        call(record[BLOCK_SQUARES], (rows, columns, values, ld, record[SQUARES] + 8 * task))
    update(record, coefficients, at_weight, rows, columns, ld, gradient.data, gradient.ld)
""",
        """    update(record, coefficients, at_weight, rows, columns, ld, gradient.data, gradient.ld)
    if record[STEP_SQUARES]:
        values = record[BASES + program.PARAMETERS] + at_weight
        call(record[BLOCK_SQUARES], (rows, columns, values, ld, record[SQUARES] + 8 * task))
""",
        f"{CONTRACT} -k 'cpu and squares_of_the_weights'",
    ),
    Bug(
        "the third state of an optimizer lies where the second does",
        NETWORK, "record[STATE_3] + at_parameter", "record[STATE_2] + at_parameter",
        f"{CONTRACT} -k 'cpu and network_train_steps'",
    ),
    Bug(
        "a C header takes a place again that is still read",
        "c99.py", "if last[entry[2]] > i or entry[2] != step.reads[0]]", "if entry[2] != step.reads[0]]",
        "tests/test_exports.py -k 'c_predicts'",
    ),
    Bug(
        "a C header leaves the eps of batch norm out",
        "c99.py", "variance.astype(np.float64) + layer.eps", "variance.astype(np.float64)",
        "tests/test_exports.py -k 'c_predicts'",
    ),
    Bug(
        "a residual block of an ONNX file adds to itself",
        "chains.py", "reads = x, inside[-1].name if inside else x", "reads = (inside[-1].name if inside else x,) * 2",
        "tests/test_exports.py -k 'onnx_runtime'",
    ),
    Bug(
        "the one output of two classes is the first less the second",
        "estimators.py", "(np.diff(array) for array in", "(-np.diff(array) for array in",
        "tests/test_estimators.py -k 'trained_here'",
    ),
    Bug(
        "the same normalisation may come twice in a module of PyTorch",
        "pytorch.py", '("Linear", "LayerNorm", "BatchNorm1d")', '("Linear",)',
        "tests/test_pytorch.py",
    ),
    Bug(
        "a Softplus is converted whatever its threshold",
        "pytorch.py", '{"Softplus": {"threshold": 20}}', "{}",
        "tests/test_pytorch.py",
    ),
    Bug(
        "the weight penalty of Adam goes past the average of the squares",
        UPDATES, "fma(v, b2, g * g * rest2)", "fma(v, b2, (g - w * l2) * (g - w * l2) * rest2)",
        f"{CONTRACT} -k 'cpu and optimizer_step'",
    ),
    Bug(
        "Lion takes the sign of the average that it keeps",
        UPDATES, "sign(fma(exp_avg, b1, g * rest1))", "sign(fma(exp_avg, b2, g * rest2))",
        f"{CONTRACT} -k 'cpu and optimizer_step'",
    ),
    # ---------------------------------------------------------------------------------------- the walk
    Bug(
        "the derivative gets the output instead of what was saved",
        PROGRAM, "self.emit(operation, *operands, x.saved or x.out, x.grad,",
        "self.emit(operation, *operands, x.out, x.grad,",
        "tests/test_model.py -k finite_differences",
    ),
    Bug(
        "weights of the rows are ignored",
        NETWORK, "weight[i] = row_weight[index[i]] * scale", "weight[i] = scale",
        f"{CONTRACT} -k 'cpu and network_train_steps'",
    ),
    Bug(
        "hits of the last row are not counted",
        NETWORK, "for i in range(n):\n            total += row_hit[i]",
        "for i in range(n - 1):\n            total += row_hit[i]",
        f"{CONTRACT} -k 'cpu and network_train_steps'",
    ),
    Bug(
        "biases have the coefficients of weights",
        NETWORK, "update_vector(record, coefficients, bias[OFFSET] + item * j, columns, sums)",
        "update(record, coefficients, bias[OFFSET] + item * j, 1, columns, 0, sums, 0)",
        f"{CONTRACT} -k 'cpu and coefficients_of_their_own'",
    ),
    Bug(
        "inputs are taken in order, not by their index",
        ELEMENTWISE, "row, later = index[i],", "row, later = i,",
        f"{CONTRACT} -k 'cpu and network_train_steps'",
    ),
    Bug(
        "labels are taken in order, not by their index",
        NETWORK, "batch[first + i] = labels[index[i]]", "batch[first + i] = labels[first + i]",
        f"{CONTRACT} -k 'cpu and network_train_steps'",
    ),
    Bug(
        "every step has the coefficients of the first",
        NETWORK, "                coefficients = given(record, COEFFICIENTS) + 8 * layout.COEFFICIENTS * step",
        "                coefficients = given(record, COEFFICIENTS)",
        f"{CONTRACT} -k 'cpu and network_train_steps'",
    ),
    Bug(
        "a loss that is not finite does not stop",
        NETWORK,
        "        if not finite:\n            break\n        if thread == 0 and record[STEP_SQUARES]:\n            "
        "sum_squares(record, step, blocks)\n    exchange_control(control)\n\n\ndef train_steps_in_groups",
        "        if thread == 0 and record[STEP_SQUARES]:\n            "
        "sum_squares(record, step, blocks)\n    exchange_control(control)\n\n\ndef train_steps_in_groups",
        f"{CONTRACT} -k 'cpu and network_train_steps'",
    ),
    # ------------------------------------------------------------------------------- groups of rows
    Bug(
        "the gradient of a weight begins anew with every group of rows",
        NETWORK, "beta, ends = 1 - group.begins, group.ends", "beta, ends = 0, group.ends",
        "tests/test_groups.py -k change_no_bit",
    ),
    Bug(
        "every group updates",
        NETWORK, "beta, ends = 1 - group.begins, group.ends", "beta, ends = 1 - group.begins, True",
        "tests/test_groups.py -k change_no_bit",
    ),
    Bug(
        "losses of a group are written over those of the one before",
        NETWORK, "record[BASES + program.ROW_LOSS] + item * done", "record[BASES + program.ROW_LOSS]",
        "tests/test_groups.py -k change_no_bit",
    ),
    Bug(
        "every group has the rows of the first",
        NETWORK, "begin, stop, start + done, True, scale", "begin, stop, start, True, scale",
        "tests/test_groups.py -k change_no_bit",
    ),
    Bug(
        "sums of columns leave out the last rows of a batch in groups",
        ELEMENTWISE, "for i in range(whole, rows):\n                rest += load_row(rest, z + (i * ldz + j), tail)",
        "for i in range(whole, whole):\n                rest += load_row(rest, z + (i * ldz + j), tail)",
        "tests/test_groups.py -k any_length",
    ),
    Bug(
        "chains of sums of columns lie where the columns of a block say",
        NETWORK, "ld = round_up(instruction[OPERANDS + OPERAND + COLUMNS], record[LANES])",
        "ld = round_up(columns, record[LANES])",
        "tests/test_groups.py -k others_in_the_last",
    ),
    Bug(
        "norms see a group of rows for the batch",
        WORKSPACES, "not others and linear_alone and small", "small",
        "tests/test_groups.py -k meet_elsewhere",
    ),
    # -------------------------------------------------------------------------------- kept trainings
    Bug(
        "numbers of X are looked at in the first of equal calls only",
        "kept.py", " or not data.are_finite(model, X)", "",
        "tests/test_kept.py -k every_call",
    ),
    Bug(
        "the last numbers of a large array are not looked at",
        CPU, "sums[columns:] = buffer[-columns:]", "sums[columns:] = 0",
        "tests/test_checks.py -k of_a_large_array",
    ),
    Bug(
        "a training is kept with the parameter its loss had",
        "kept.py", "loss.parameter != steps.workspace.loss_parameter or loss", "loss",
        "tests/test_kept.py -k is_another",
    ),
    Bug(
        "a training is kept without the weights that its loss was given",
        "kept.py", " or loss.weighs_by_target or", " or",
        "tests/test_kept.py -k given_weights",
    ),
    Bug(
        "a training is kept with a list of callbacks, to which one comes later",
        "kept.py", "if changes or not (training.plain", "if not (training.plain",
        "tests/test_kept.py -k may_grow",
    ),
    Bug(
        "a kept training holds the data",
        "kept.py", "        finally:\n            self._give(None, None, None)", "        finally:\n            pass",
        "tests/test_kept.py -k are_held",
    ),
    Bug(
        "arguments that only equal those of the call before are taken for them",
        "kept.py", "map(operator.is_, call, self.call)", "map(operator.eq, call, self.call)",
        "tests/test_kept.py -k only_equals",
    ),
    Bug(
        "after a slice that took long all others are as short",
        "slices.py", "SLICE_GROWTH * self.steps))", "self.steps))",
        "tests/test_kept.py -k took_long",
    ),
    Bug(
        "dropout on the way back has the key of another layer",
        PROGRAM, 'Operand(ROWS), parameter=layer.parameter, number=number))',
        'Operand(ROWS), parameter=layer.parameter, number=number + 1))',
        "tests/test_dropout.py",
    ),
    Bug(
        "the last column of gathered rows is lost",
        ELEMENTWISE, "for j in range(whole, columns):", "for j in range(whole, columns - 1):",
        f"{CONTRACT} -k 'cpu and network_train_steps'",
    ),
    Bug(
        "a gather that asks ahead reads past the index",
        ELEMENTWISE, "index[min(i + ahead, rows - 1)]", "index[i + ahead]",
        "tests/contract/test_memory.py -k 'stay_inside and cpu'",
    ),
    Bug(
        "a call's fields in the wrong order: the leading dimension of x and the size of its elements",
        CPU, "id(x) + _DATA, workspace.fan_in, x.itemsize, count,",
        "id(x) + _DATA, x.itemsize, workspace.fan_in, count,",
        f"{CONTRACT} -k 'cpu and network_forward'",
    ),
    Bug(
        "a training call's fields in the wrong order: keys and coefficients",
        CPU, "id(coefficients) + _DATA, id(keys) + _DATA,", "id(keys) + _DATA, id(coefficients) + _DATA,",
        f"{CONTRACT} -k 'cpu and network_train_steps'",
    ),
    Bug(
        "a workspace keeps the parameters of its first call",
        WORKSPACES, "if self.pointed.get(field) is not array:", "if field not in self.pointed:",
        f"{CONTRACT} -k 'cpu and Workspace'",
    ),
    Bug(
        "a workspace reads every dtype as that of its first call",
        WORKSPACES, "if source is not self.gathered[0] or not self.gathered[1]:", "if not self.gathered[1]:",
        f"{CONTRACT} -k 'cpu and Workspace'",
    ),
    Bug(
        "Adam counts its updates from 0",
        "optimizers.py", "np.arange(first_step + 1, first_step + steps + 1", "np.arange(first_step, first_step + steps",
        "tests/test_losses_optimizers.py tests/test_mathematics.py -k adam",
    ),
    # --------------------------------------------------------------------- steps through stored gradients
    Bug(
        "norm: the padding of rows counts",
        BUFFERS, "if ldx == columns:", "if True:",
        f"{CONTRACT} -k 'cpu and squared_norm'",
    ),
    Bug(
        "norm: the ends of rows do not count",
        BUFFERS, "for j in range(whole, columns, width):", "for j in range(whole, columns - width, width):",
        f"{CONTRACT} -k 'cpu and squared_norm'",
    ),
    Bug(
        "a loss of the user's own gets the array that backward reads",
        "model.py", "return out.copy() if result is out", "return out if result is out",
        "tests/test_fit.py -k stored_steps_are_those_of_a_loop",
    ),
    Bug(
        "gradients are added to what an older step left",
        "parameters.py", "elif not self._gradients_stored and not all_overwritten:", "elif False:",
        "tests/test_model.py -k stores_no_gradients",
    ),
    Bug(
        "a shorter batch counts as much as the others of its group",
        "steps.py", "scale(whole, share, gradient)", "scale(whole, 1.0, gradient)",
        "tests/test_fit.py -k accumul",
    ),
    Bug(
        "backward of steps ends before the first layer",
        PROGRAM, "reversed(self.tape):\n            if value.trained:",
        "reversed(self.tape[2:]):\n            if value.trained:",
        "tests/test_fit.py -k stored_steps",
    ),
    # -------------------------------------------------------------------------- checkpoints, freezing
    Bug(
        "a run that goes on draws its random bits again from the beginning of the epoch",
        "training.py", "            generator.state = now\n", "            pass\n",
        "tests/test_checkpoints.py -k 'same_bits and cpu-clipped'",
    ),
    Bug(
        "a checkpoint is written while gradients wait for an update",
        "training.py", "self.checkpoints.requested and run_steps.settled:", "self.checkpoints.requested:",
        "tests/test_checkpoints.py -k 'same_bits and cpu-accumulated'",
    ),
    Bug(
        "a folder keeps the last checkpoint only",
        "checkpoints.py", "for number in (self.number, self.good)", "for number in (self.number,)",
        "tests/test_checkpoints.py -k damaged_checkpoint",
    ),
    Bug(
        "the best weights are not in a checkpoint",
        "callbacks.py", "return super().state_dict() | weights", "return super().state_dict()",
        "tests/test_checkpoints.py -k callbacks_go_on",
    ),
    Bug(
        "a handler may save in the middle of a step",
        "parameters.py", "if self._thread == threading.get_ident():", "if False:",
        "tests/test_checkpoints.py -k save_in_a_handler",
    ),
    Bug(
        "a slice begins with the random bits of the first",
        "steps.py", "self.keys[self.batch : self.batch + steps]", "self.keys[:steps]",
        "tests/test_training.py -k masks_of_dropout",
    ),
    Bug(
        "weights that overflow in the last step are not noticed",
        "training.py", "and not self.snapshot.finite_after(progress.epoch):", "and False:",
        "tests/test_training.py -k overflow",
    ),
    Bug(
        "weights that were finite after an epoch are taken to be so, though a callback may have written",
        "slices.py", " and not network.handed_out  # since", "  # since",
        "tests/test_training.py -k callback_spoils",
    ),
    Bug(
        "the data of a training stay until garbage is collected",
        "slices.py", "            run_steps.meanwhile = None  # it holds on", "            # it holds on",
        "tests/test_training.py -k data_are_free",
    ),
    Bug(
        "the way back ends at a frozen layer",
        PROGRAM, "self.value(layer, trained=x.trained or layer.trains)", "self.value(layer, trained=layer.trains)",
        "tests/test_freezing.py -k 'frozen_layers_stay and cpu'",
    ),
    Bug(
        "the optimizer moves frozen layers where gradients are stored",
        "parameters.py", "whole = part == slice(0, self.size)", "whole = True",
        "tests/test_freezing.py -k 'frozen_layers_stay and cpu'",
    ),
    Bug(
        "the snapshot is the weights themselves",
        "parameters.py", "to = to or tuple(self.backend.empty(buffer.size, self.dtype) for buffer in (",
        "to = to or tuple(buffer for buffer in (",
        "tests/test_fit.py -k nonfinite",
    ),
    # --------------------------------------------------------------------------- normalisations
    Bug(
        "layer normalisation takes the lanes beyond the last column into its variance",
        NORMS, "select(first_lanes(tile, tail), load(tile, x.data + j, x.ld, tail) - mean, 0.0)",
        "load(tile, x.data + j, x.ld, tail) - mean",
        f"{CONTRACT} -k 'cpu and layer_norm_forward'",
    ),
    Bug(
        "running variance has the bias of the batch",
        NORMS, "store(spread * unbiased, variance + j, 0, tail)", "store(spread, variance + j, 0, tail)",
        f"{CONTRACT} -k 'cpu and batch_moments'",
    ),
    Bug(
        "a residual block forgets its input on the way back",
        PROGRAM, "            x.pending.append(y.grad)\n", "",
        "tests/test_norms.py -k finite_differences",
    ),
    # ------------------------------------------------------------------- small networks in a cluster of the GPU
    Bug(
        "CUDA: gradients are fetched from blocks that still make them",
        CLUSTER,
        """                arrive()
                c = coefficients(floats, record[COEFFICIENTS] + step * layout.COEFFICIENTS)
                wait()
""",
        """                cuda.syncthreads()
                c = coefficients(floats, record[COEFFICIENTS] + step * layout.COEFFICIENTS)
""",
        CLUSTER_TESTS,
    ),
    Bug(
        "CUDA: a step begins before all blocks have its parameters",
        CLUSTER,
        "            wait_for_all_copies()\n            arrive()\n            wait()\n",
        "            wait_for_all_copies()\n            cuda.syncthreads()\n",
        CLUSTER_TESTS,
    ),
    Bug(
        "CUDA: a block has arrived before its losses are there",
        CLUSTER,
        "                sum_losses(shared, wide, long, room, rows, row_lanes, sums, counts)\n                arrive()",
        "                arrive()\n                sum_losses(shared, wide, long, room, rows, row_lanes, sums, counts)",
        CLUSTER_TESTS,
    ),
    Bug(
        "CUDA: an instruction begins before the one before it has ended",
        CLUSTER,
        "first_number)\n            cuda.syncthreads()\n", "first_number)\n",
        CLUSTER_TESTS,
    ),
    Bug(
        "CUDA: the next batch of a cluster comes to where this one is",
        CLUSTER,
        "to = room.input + (1 - odd) * room.input_step", "to = room.input + odd * room.input_step",
        CLUSTER_TESTS,
    ),
    Bug(
        "CUDA: the gradients of the last block of a cluster are left out",
        CLUSTER,
        "        for block in range(FEW_BLOCKS, MANY_BLOCKS):\n            total",
        "        for block in range(FEW_BLOCKS, MANY_BLOCKS - 1):\n            total",
        CLUSTER_TESTS,
    ),
    Bug(
        "CUDA: a cluster of many blocks is not asked for",
        "kernels/cuda/compiling.py", "        driver.allow_large_clusters(self.code)\n", "",
        CLUSTER_TESTS,
    ),
    Bug(
        "CUDA: as many networks train at once as if every cluster had eight blocks",
        "training.py", "return min(most, kernels.at_once(", "return max(most, kernels.at_once(",
        CLUSTER_TESTS,
    ),
    Bug(
        "CUDA: tensor cores multiply what lies beyond the last term",
        "kernels/cuda/cluster_tensor_cores.py", "values[e] = x if there else zero", "values[e] = x",
        CLUSTER_TESTS,
    ),
    Bug(
        "CUDA: a graph of several steps has one more",
        CUDA_NETWORK, "for _ in range(times - 1):", "for _ in range(times):",
        "tests/cuda/test_emulator.py -k test_counts",
    ),
    Bug(
        "CUDA: the update waits for the sum of the losses alone",
        CUDA_NETWORK, "in dict.fromkeys(branches):", "in branches[:1]:",
        "tests/cuda/test_emulator.py -k test_counts",
    ),
    Bug(
        "CUDA: the gradients of all weights leave their parts in one place",
        CUDA_NETWORK, "places[number].append((end, ld))", "places[number].append((start, ld))",
        "tests/cuda/test_emulator.py -k test_counts",
    ),
    Bug(
        "CUDA: gradients of parameters begin with the loss",
        CUDA_NETWORK, "ready[max(listing.loss, *read)]", "ready[listing.loss]",
        "tests/cuda/test_emulator.py -k test_steps",
    ),
    Bug(
        "CUDA: parameters are updated by sums of columns that may not be there",
        "kernels/cuda/linear.py", "    streams.join(beside, stream)\n", "",
        "tests/cuda/test_emulator.py -k test_counts",
    ),
    Bug(
        "CUDA: dropout goes by the next step, which the sum of the losses writes",
        "kernels/cuda/elementwise.py", "record[record[KEYS] + record[CURRENT]]", "record[record[KEYS] + record[NEXT]]",
        "tests/cuda/test_emulator.py -k test_counts",
    ),
    Bug(
        "CUDA: the update goes by the current step, which the gathering of the next rows writes",
        "kernels/cuda/optimizers.py", "(record[NEXT] - 1)", "record[1]",
        "tests/cuda/test_emulator.py -k test_counts",
    ),
    Bug(
        "CUDA: the way forward begins before its rows have been gathered beside the update",
        CUDA_NETWORK, "            streams.join(beside, stream)\n            self.make", "            self.make",
        "tests/cuda/test_emulator.py -k test_counts",
    ),
    Bug(
        "CUDA: the update of a loop of one's own takes the coefficients of no step",
        "kernels/cuda/record.py", "0, 1, done=1)", "0, 1)",
        "tests/cuda/test_updates.py -k order",
    ),
    Bug(
        "CUDA: the update leaves out the last part of a gradient",
        "kernels/cuda/elementwise.py", "for _ in range(parts):", "for _ in range(parts - 1):",
        "tests/cuda/test_updates.py -k order",
    ),
    Bug(
        "CUDA: the update adds up the last part of a gradient first",
        "kernels/cuda/elementwise.py", "        total = nothing\n",
        "        total, first, step = nothing, first + (parts - 1) * step, -step\n",
        "tests/cuda/test_updates.py -k order",
    ),
    Bug(
        "CUDA: the update of the last rows adds up as many parts as that of a batch has",
        CUDA_NETWORK, "(x.columns, grad.columns, n)", "(x.columns, grad.columns, self.batch_size)",
        "tests/cuda/test_steps.py -k 'in_parts and instruction'",
    ),
    Bug(
        "CUDA: the update begins the tiles of every array where those of the first begin",
        "kernels/cuda/parameters.py", "            first = end\n", "",
        "tests/cuda/test_updates.py -k order",
    ),
    Bug(
        "CUDA: a branch waits for what was launched before it the first time alone",
        "kernels/cuda/streams.py", "    follow(mark(stream), stream.branches[name])\n",
        "        follow(mark(stream), stream.branches[name])\n",
        "tests/cuda/test_emulator.py -k test_counts",
    ),
    Bug(
        "CUDA: graphs that are used go as soon as others",
        CUDA_NETWORK, "graphs = self.graphs.pop(key, None)", "graphs = self.graphs.get(key)",
        "tests/cuda/test_emulator.py -k test_steps",
    ),
    # --------------------------------------------------------------------------- what the host does meanwhile
    Bug(
        "an order that was drawn ahead is taken although a callback has drawn since",
        "data.py", "if of is chunk and before == pickle.dumps(model.generator.bit_generator.state):", "if of is chunk:",
        "tests/cuda/test_front.py -k drawn_ahead",
    ),
    Bug(
        "CUDA: page-locked memory is written while a copy from there may be on its way",
        "steps.py", "        if self.under_way:  # the step before was interrupted", "        if not self:",
        "tests/cuda/test_front.py -k rows_of_a_step",
    ),
    # --------------------------------------------------------------------------- the product of the GPU
    Bug(
        "CUDA: a matrix begins where its array does",
        "kernels/cuda/operands.py", "return matrix.offset + i * matrix.ld + j", "return i * matrix.ld + j",
        f"{CUDA_TESTS} -k test_narrow",
    ),
    Bug(
        "CUDA: a tile takes the terms of a panel in another order",
        CUDA_GEMM, "return unrolled(tile.bk, one)",
        "return unrolled(tile.bk, one if tm == tn else lambda term, *rest: one(tile.bk - 1 - term, *rest))",
        f"{CUDA_TESTS} -k 'tile_changes_no_bit and ieee'",
    ),
    Bug(
        "CUDA: cp.async fills up what does not exist with what is there",
        TENSOR_CORES, "int32(min(max(terms - inner, 0), width))", "int32(width)",
        f"{CUDA_TESTS} -k 'test_tensor_cores and tf32'",
    ),
    Bug(
        "CUDA: low parts are multiplied by low parts",
        TENSOR_CORES, "a_operands, low, low + 2, b_operands, turn * 2)",
        "a_operands, low, low + 2, b_operands, b_low + turn * 2)",
        f"{CUDA_TESTS} -k two_bfloat16",
    ),
    Bug(
        "CUDA: a panel is multiplied before its copy is waited for",
        TENSOR_CORES, "wait_for_copies(ahead - 1)", "wait_for_copies(ahead)",
        f"{CUDA_TESTS} -k 'test_tensor_cores and tf32'",
    ),
    Bug(
        "CUDA: a copy goes to the place that is read",
        TENSOR_CORES, "            stage = read\n", "            stage = int32((read + stage_size) % end)\n",
        f"{CUDA_TESTS} -k 'test_tensor_cores and tf32'",
    ),
    Bug(
        "CUDA: the rows of the smaller of two tiles begin a row late",
        CUDA_GEMM, "block - blocks, shape.rows, m,", "block - blocks, shape.rows + 1, m,",
        f"{CUDA_TESTS} -k 'two_tiles and float32-ieee'",
    ),
    Bug(
        "CUDA: the model lets no smaller tile run beside a larger one",
        "kernels/cuda/blocking.py", "beside = min(then, fit - left) if left else 0", "beside = 0",
        "tests/cuda/test_blocking.py -k worst_cliff",
    ),
    Bug(
        "CUDA: training goes on as FASTBP_CUDA asked for before",
        "kernels/cuda/network.py", "        if asked != self.asked:\n", "        if self.asked is None:\n",
        "tests/cuda/test_emulator.py -k networks_by_stored",
    ),
    Bug(
        "CUDA: an interruption leaves gradients without the places of their parts",
        "kernels/cuda/network.py", "        clear(gradients, streams.stream())\n",
        "        self.parameter_gradients = gradients\n        clear(gradients, streams.stream())\n",
        "tests/cuda/test_emulator.py -k test_counts",
    ),
    Bug(
        "CUDA: the loss of a row begins before the block has made its prediction",
        "kernels/cuda/last_layer.py", "        cuda.syncthreads()\n", "",
        "tests/cuda/test_emulator.py -k last_layers",
    ),
    Bug(
        "CUDA: a block makes the loss of rows after its own",
        "kernels/cuda/last_layer.py", "i < end, of_row_lanes", "i < m + 1, of_row_lanes",
        "tests/cuda/test_emulator.py -k last_layers",
    ),
    Bug(
        "CUDA: of the panels shared memory holds one fewer than are on their way",
        WGMMA, "self.parts = tile.stages * self.stage_size", "self.parts = (tile.stages - 1) * self.stage_size",
        WGMMA_TESTS,
    ),
    Bug(
        "CUDA: a block copies a panel for both of a pair when it has multiplied the one before itself",
        WGMMA, "lane if together else me", "me",
        WGMMA_TESTS,
    ),
    Bug(
        "CUDA: both blocks of a pair copy the same half of a panel",
        WGMMA, "own_b + me * (own_columns * ROW)", "own_b",
        WGMMA_TESTS,
    ),
    Bug(
        "CUDA: products of the second block of a pair find its panels elsewhere",
        WARPGROUP, "                address = builder.and_(address, i32()(ADDRESS))\n", "",
        WGMMA_TESTS,
    ),
    Bug(
        "CUDA: a block of a pair ends before the other",
        WGMMA, "        if blocks > 1:\n            meet()\n", "",
        WGMMA_TESTS,
    ),
    Bug(
        "CUDA: blocks of a pair begin before the other has its barriers",
        WGMMA, "()\n        meet()\n", "()\n        cuda.syncthreads()\n",
        WGMMA_TESTS,
    ),
    Bug(
        "CUDA: a product of a warpgroup begins without a fence",
        WARPGROUP, '["wgmma.fence.sync.aligned;", *lines', "[*lines",
        WGMMA_TESTS,
    ),
    Bug(
        "CUDA: copies count on barriers that they may not see",
        WGMMA, "            show_barriers()\n", "",
        WGMMA_TESTS,
    ),
    Bug(
        "CUDA: panels are multiplied in the phase before they come",
        WGMMA, "        stage, parity = int32(0), int32(0)\n", "        stage, parity = int32(0), int32(1)\n",
        WGMMA_TESTS,
    ),
    Bug(
        "CUDA: the phase stays the same when the places are used again",
        WGMMA, "return int32(0), int32(parity ^ 1)", "return int32(0), parity",
        WGMMA_TESTS,
    ),
    Bug(
        "CUDA: a place is free before its panels have been multiplied",
        WARPGROUP, "wgmma.wait_group.sync.aligned 0;", "wgmma.wait_group.sync.aligned 1;",
        WGMMA_TESTS,
    ),
    Bug(
        "CUDA: the low parts that a warpgroup multiplies are stored where the high ones of others are",
        PANELS, "unit_of_row = part * units + to % units", "unit_of_row = (1 - part) * units + to % units",
        WGMMA_TESTS,
    ),
    Bug(
        "CUDA: a warpgroup multiplies low by high before high by low",
        PANELS, "(0, 0), (0, 2), (2, 0)", "(0, 0), (2, 0), (0, 2)",
        "tests/cuda/test_emulator.py -k 'products_of_stored and others'",
    ),
    Bug(
        "CUDA: a warp multiplies panels that may not have come",
        MMA, "wait_for_copies(ahead - 1), wait", "wait_for_copies(ahead), wait",
        WGMMA_TESTS,
    ),
    Bug(
        "CUDA: C goes out through shared memory whose panels other warps still multiply",
        MMA, "        cuda.syncthreads()  # then the place of panels is that of C\n", "",
        "tests/cuda/test_emulator.py -k 'products_of_stored and others'",
    ),
    Bug(
        "CUDA: matrices of A come as those of B do",
        MMA, "load_matrices((0, 2, 1, 3))", "load_matrices((0, 1, 2, 3))",
        WGMMA_TESTS,
    ),
    Bug(
        "CUDA: rows that a batch lacks are stored as they are for products over its rows",
        PANEL_TILES, "if r >= m or s + e >= n:", "if s + e >= n:",
        "tests/cuda/test_emulator.py -k 'products_of_stored and others'",
    ),
    Bug(
        "CUDA: a part of C is stored as a factor while others of its warp still finish it",
        PANEL_TILES, "        if stores:\n            cuda.syncwarp()\n", "        if stores:\n",
        "tests/cuda/test_emulator.py -k 'products_of_stored and others'",
    ),
    Bug(
        "CUDA: parts of a product's terms all have its first panels",
        PANEL_TILES, "first = part * shape.each\n    return", "first = 0\n    return",
        "tests/cuda/test_emulator.py -k 'products_of_stored and others'",
    ),
    Bug(
        "CUDA: weights are not stored anew where a call begins",
        CUDA_NETWORK, "            self.factors.store_weights(run.parameters, stream)\n",
        "            self.factors.store_weights(run.parameters, stream) if self.graphs == {} else None\n",
        "tests/cuda/test_emulator.py -k networks_by_stored",
    ),
    Bug(
        "CUDA: an update leaves the second form of a weight as it was",
        PANELS, "Panels(factors, line.along, line.along_rows)", "Panels(factors, line.along, 0)",
        "tests/cuda/test_emulator.py -k networks_by_stored",
    ),
    Bug(
        "CUDA: a panel that is turned on its way is not spread over the banks",
        CUDA_GEMM, "TURNED_SPREAD = 4", "TURNED_SPREAD = 0",
        "tests/cuda/test_banks.py -k 'no_two_words and float32-ieee-small'",
    ),
    Bug(
        "CUDA: a warp's threads lie row by row, and their loads from shared memory take twice as long",
        CUDA_GEMM, "return lane % 2 + lane // 4 % half_m * 2, lane // 2 % 2 + lane // (4 * half_m) * 2",
        "return lane // (WARP // (2 * half_m)), lane % (WARP // (2 * half_m))",
        "tests/cuda/test_banks.py -k 'two_passes and float32-ieee-small'",
    ),
    Bug(
        "CUDA: the last part of a gradient's terms is as long as the others",
        CUDA_GEMM, "k = min(shape.terms, k - first)", "k = shape.terms",
        f"{CUDA_TESTS} -k 'terms_in_parts and ieee'",
    ),
    Bug(
        "CUDA: the terms of forward are cut, and a row's bits depend on its batch",
        CUDA_GEMM, 'trans == "TN" and parts is not None', 'trans != "NT"',
        f"{CUDA_TESTS} -k only_the_gradient",
    ),
    # ---------------------------------------------------------------------------------------------- graph
    Bug(
        "graph: of a value that is used twice the last gradient counts",
        GRAPH, "y._grad = grad * dy if flow is None else flow + grad * dy", "y._grad = grad * dy",
        "tests/test_autograd.py -k used_twice",
    ),
    Bug(
        "graph: functions run before all that used their result",
        GRAPH, "    order.sort(key=_tick_of)", "    order.reverse()",
        "tests/test_autograd.py -k reverse_order",
    ),
    Bug(
        "graph: a value that was changed goes unnoticed",
        GRAPH, "if x._tick > tick and node.reads_inputs:", "if False:",
        "tests/test_autograd.py -k refuses_a_value",
    ),
    Bug(
        "graph: parameters that were changed go unnoticed",
        GRAPH, "            node.check_unchanged()\n", "",
        "tests/test_autograd.py -k refuses_parameters",
    ),
    Bug(
        "graph: a leaf shares its gradient with another",
        GRAPH, " and sum(flow is other for other in flows) <= 1", "",
        "tests/test_autograd.py -k arrays_of_their_own",
    ),
    Bug(
        "graph: broadcasting is undone on the wrong axes",
        GRAPH, "stretched = [more + axis for", "stretched = [axis for",
        "tests/test_autograd_operations.py -k broadcasting",
    ),
    Bug(
        "graph: every tied input gets the whole gradient",
        "autograd/arithmetic.py", "np.where(tied, grad / 2,", "np.where(tied, grad,",
        "tests/test_autograd_mathematics.py -k ties",
    ),
    Bug(
        "graph: a call of a layer goes back by the layer's last call",
        "layers/base.py", "last, layer.last_call = layer.last_call, ctx.call", "last = layer.last_call",
        "tests/test_autograd.py -k shared_weights",
    ),
    # --------------------------------------------------------------------------------- threads, processes
    Bug(
        "rows that the threads do not share evenly are lost",
        NETWORK, "    if thread == threads - 1:\n        last = count\n", "",
        f"{CONTRACT} -k 'cpu and threads_do_not_change_bits'",
    ),
    Bug(
        "the barrier lets everybody through",
        NETWORK, "while atomic_load(counter) < phase * threads:", "while atomic_load(counter) < 0:",
        "tests/test_processes.py -k number_of_workers",
        chance=True,
    ),
    Bug(
        "members are not waited for when an exception comes",
        TEAM, "while len(job.finished) < threads - 1:", "if len(job.finished) < threads - 1:",
        "tests/test_processes.py -k exceptions_of_signals",
    ),
    Bug(
        "a forked child goes on with the team of its parent",
        TEAM, "    os.register_at_fork(after_in_child=_found)", "    pass",
        "tests/test_processes.py -k fork_after_use",
    ),
    Bug(
        "locks around a fork in the wrong order",
        JIT, "for lock in (global_compiler_lock, _lock):", "for lock in (_lock, global_compiler_lock):",
        "tests/test_processes.py -k fork_while_another_thread_compiles",
    ),
    # ------------------------------------------------------------------------------------------- files
    Bug(
        "a model saved over a private file may be read by all",
        "files.py", "os.chmod(temporary, mode)", "pass",
        "tests/test_files.py -k the_mode_of",
    ),
    Bug(
        "what a kill left stays",
        "files.py", "    _remove_abandoned(folder, name)\n", "",
        "tests/test_files.py -k kills",
    ),
    Bug(
        "a file that another process writes counts as left",
        "files.py", "if _lock(left):", "if True:",
        "tests/test_files.py -k another_process",
    ),
    # ------------------------------------------------------------------------------------------- estimators
    Bug(
        "gradients of several outputs are those of their mean",
        "sklearn/rate.py", "super()._fill(columns, lr * self.scale, t)", "super()._fill(columns, lr, t)",
        "tests/test_sklearn.py -k huber_far",
    ),
    Bug(
        "the penalty is scaled as the loss is",
        "sklearn/steps.py", "= totals, self.alpha / (totals * self.objective.scale)", "= totals, self.alpha / totals",
        "tests/test_sklearn.py -k huber_far",
    ),
    Bug(
        "a refused fit leaves the new network",
        "sklearn/base.py", "vars(self).update(before)", "pass",
        "tests/test_sklearn_users.py -k refused_fit",
    ),
    Bug(
        "partial_fit keeps the penalty of the alpha before",
        "sklearn/steps.py", "self.alpha, self.penalised, self.decay = alpha, None, None", "self.alpha = alpha",
        "tests/test_sklearn_users.py -k partial_fit_keeps",
    ),
    Bug(
        "partial_fit keeps the loss of before",
        "sklearn/epochs.py", "if known == made_of and ready", "if known is not None and ready",
        "tests/test_sklearn_users.py -k partial_fit_keeps",
    ),
    Bug(
        "the rows of a batch are those of another division",
        "sklearn/steps.py", "if self.divided != (rows, self.batch_size):", "if self.divided is None:",
        "tests/test_sklearn_users.py -k partial_fit_keeps",
    ),
    Bug(
        "a target of too few columns is read beyond its end",
        "sklearn/base.py", "if target.ndim == 2 and target.shape[1] != outputs:", "if False:",
        "tests/test_sklearn_users.py -k another_number",
    ),
    Bug(
        "what normalises is new when an argument changes",
        "sklearn/base.py", "setattr(new, name, np.array(getattr(old, name)))", "pass",
        "tests/test_sklearn.py -k normalisation_and_residuals",
    ),
    Bug(
        "a search does not stop the fits beside one that failed",
        "sklearn/search.py", "self.group.stop()", "pass",
        "tests/test_sklearn_search.py -k an_error_stops",
    ),
    # ------------------------------------------------------------------------------------------- the cache
    Bug(
        "the checksum is not looked at",
        DISK, "if hashlib.sha256(place.encode() + raw[32:]).digest() != raw[:32]:", "if len(raw) < 32:",
        "tests/test_cache.py -k every_byte",
    ),
    Bug(
        "the checksum does not hold an entry to its name",
        DISK, 'return f"{path.parent.name}/{path.name}"', "return path.parent.name",
        "tests/test_cache.py -k no_entry",
    ),
    Bug(
        "the checksum does not hold an entry to its stamp",
        DISK, 'return f"{path.parent.name}/{path.name}"', "return path.name",
        "tests/test_cache.py -k another_stamp",
    ),
    Bug(
        "an entry that anybody may write is run",
        DISK, 'or (hasattr(os, "getuid") and not _is_private(info))', "",
        "tests/test_cache.py -k no_entry",
    ),
    Bug(
        "the stamp leaves out modules without a source",
        DISK, "modules = [module.name for module in pkgutil.iter_modules([str(package)]) if not module.ispkg]",
        'modules = [path.stem for path in package.glob("[a-z]*.py")]',
        "tests/test_cache.py -k 'without_sources and one_module'",
    ),
    Bug(
        "the stamp that was used last is the first to go",
        DISK, "key=_last_used, reverse=True)", "key=_last_used)",
        "tests/test_cache.py -k least_recently",
    ),
    Bug(
        "an update of a loop of one's own can be cut off from its count",
        "optimizers.py", "deque(map(operator.call, calls), 0)", "[call() for call in calls]",
        "tests/test_interruptions.py -k 'step_of_a_loop and some'",
    ),
    Bug(
        "dropout knows a row by its number in its chunk",
        "steps.py", "np.stack([rows, rows + self.first])", "np.stack([rows, rows])",
        "tests/test_trust.py -k 'go_by_chunks and cpu'",
    ),
    Bug(
        "a control group of other controllers counts",
        "kernels/processors.py", '"cpu" in controllers.split(",")', '"cpu" in controllers',
        "tests/test_team.py -k quota",
    ),
    Bug(
        "the sources do not belong to the stamp",
        DISK, "digest.update(source.read_bytes())", "pass",
        "tests/test_cache.py -k changed_callee",
    ),
    Bug(
        "the processor does not belong to the stamp",
        JIT, "target.magic_tuple(), ", "",
        "tests/test_cache.py -k flags_and_features",
    ),
    Bug(
        "a directory of somebody else is used",
        DISK, "return info.st_uid == os.getuid() and not", "return not",
        "tests/test_cache.py -k directories_of_others",
    ),
]  # fmt: skip


def copy_package(directory):
    """The package with its kernels inside, and the tests: what a process that starts there imports."""
    for folder in ("fastbp", "tests"):
        shutil.copytree(
            ROOT / folder, directory / folder, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True
        )
    shutil.copy(ROOT / "pyproject.toml", directory)


def pytest(directory, tests):
    """(Exit code, output) of tests against the package in this directory."""
    environment = os.environ | {"PYTHONPATH": str(directory), "FASTBP_CACHE_DIR": str(directory / "cache")}
    environment["NUMBA_ENABLE_CUDASIM"] = "1"  # the CUDA backend runs in Numba's simulator
    where = "import fastbp.kernels as kernels; print(kernels.__file__)"
    process = subprocess.run(
        [sys.executable, "-c", where], cwd=directory, env=environment, capture_output=True, text=True, check=True
    )
    assert process.stdout.startswith(str(directory)), process.stdout
    command = f"{sys.executable} -m pytest -x -q -p no:cacheprovider --color=no {tests}"
    process = subprocess.run(command, shell=True, cwd=directory, env=environment, capture_output=True, text=True)
    return process.returncode, process.stdout + process.stderr


def verdict(bug):
    """What became of a bug, in words, and whether that is well."""
    with tempfile.TemporaryDirectory(prefix="fastbp-bug-") as directory:
        copy_package(Path(directory))
        bug.plant(Path(directory))
        code, output = pytest(Path(directory), bug.tests)
    failed = re.search(r"^(?:FAILED|ERROR) (.*)", output, re.MULTILINE)
    if code == 0:
        return ("missed, by chance" if bug.chance else "SURVIVED"), bug.chance
    if code > 128:  # as a shell says it
        return f"caught: signal {code - 128} ended the process of the tests", True
    if code != 1 or failed is None or "numba.core.errors" in output:
        return f"NO TEST RAN\n{output[-3000:]}", False
    return f"caught by {failed[1].partition(' - ')[0]}", True


def impossible(bug):
    """Whether nothing on this machine could show a bug."""
    from fastbp.kernels.cpu import blocking, simd

    return bug.tall and blocking.MR <= simd.GROUP


def passing(bugs):
    """Those of the tests named that pass without a bug, and those that need a package which is not there."""
    good, skipped = set(), set()
    with tempfile.TemporaryDirectory(prefix="fastbp-bugs-") as directory:
        copy_package(Path(directory))
        for tests in dict.fromkeys(bug.tests for bug in bugs):
            code, output = pytest(Path(directory), tests)
            if code == 0 and " passed" in output:
                good.add(tests)
            elif code in (0, 5) and " skipped" in output:  # 5: no test was left
                skipped.add(tests)
            else:
                print(f"{tests} fails without a bug, or does not run:\n{output[-1500:]}", flush=True)
    return good, skipped


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("titles", nargs="*")
    parser.add_argument("--sample", type=int, metavar="N", help="run N of the rows")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="which ones (default: %(default)s)")
    arguments = parser.parse_args()
    titles = arguments.titles
    bugs = [bug for bug in BUGS if not titles or any(part in bug.title for part in titles)]
    if arguments.sample is not None:
        bugs = random.Random(arguments.seed).sample(bugs, min(arguments.sample, len(bugs)))
    with tempfile.TemporaryDirectory(prefix="fastbp-bugs-") as directory:
        for bug in bugs:  # every text is where it is looked for, before anything takes time
            copy_package(Path(directory))
            bug.plant(Path(directory))
    for bug in filter(impossible, bugs):
        print(f"{bug.title}: cannot be shown by this processor")
    bugs = [bug for bug in bugs if not impossible(bug)]
    trusted, skipped = passing(bugs)
    good = True
    for bug in bugs:
        start = time.perf_counter()
        if bug.tests in skipped:
            words, well = "not planted, its tests are skipped here", True
        else:
            words, well = verdict(bug) if bug.tests in trusted else ("CANNOT TELL", False)
        good &= well
        print(f"{bug.title}: {words} ({time.perf_counter() - start:.0f} s)", flush=True)
    raise SystemExit(0 if good else "not every bug was caught")


if __name__ == "__main__":
    main()
