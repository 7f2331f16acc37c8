"""Many training steps of a small network in one launch, by one thread-block cluster that keeps everything on the chip.

A cluster is 8 or 16 blocks, each on a multiprocessor of its own, that wait for one another and reach each other's
shared memory. Every block has a copy of the parameters there and takes a share of the batch forward and back; its part
of the optimizer's state is there too. A step has two barriers of the cluster:

1. Each block makes the gradients of its rows, from products of register tiles, and the sum of its losses.
2. *Barrier.* Each block adds up the gradients of its share of the parameters, block after block in their order, updates
   them, and writes the new ones into the copies of all. All blocks add up the losses in the same way, so each knows
   whether to go on.
3. *Barrier.* The next step begins; its rows have come from global memory meanwhile.

The kernel is compiled for a loss, an optimizer, the activations and the precision of the network; the network itself is
data: a `Plan` says where everything lies in a block's shared memory. Steps are those of
`network.TrainingWorkspace.step`, in another order of summation.
"""

from functools import cache

import numpy as np

from .. import layout
from . import cluster_tensor_cores, driver, ptx, steps
from .asked import asked
from .cluster_plan import (
    ACTIVATION,
    BIAS,
    COLUMNS,
    FEW_BLOCKS,
    INPUT,
    INSTRUCTION,
    LD_OTHER,
    LD_OUT,
    LD_WEIGHT,
    LD_X,
    MANY_BLOCKS,
    NUMBER,
    OPERATION,
    OTHER,
    OUT,
    TERMS,
    TILES,
    WEIGHT,
    WIDTH,
    Plan,
    Room,
    X,
    blocks_of,
)
from .cluster_products import DTYPE, products, split
from .compiling import device_function, kernel, made_once, vector
from .driver import cuda, types
from .elementwise import splitmix64, weight_scale
from .formulas import formulas
from .launch import THREADS, lanes_of_row, sum_over_lanes
from .losses import loss_of_row
from .operands import FLOAT, FLOATS, INT, INTS, Lanes, Row, matrix, type_of
from .operands import at as element
from .optimizers import states_of, states_type, update_of_element
from .ptx import asynchronous_copy, commit_copies, wait_for_copies
from .record import BATCH, COEFFICIENTS, KEYS, NEXT, NUMBERS, ROWS, STOPPED
from .steps import (
    ACTIVATION_FORWARD,
    ADD,
    DROPOUT,
    LINEAR_BACKWARD_INPUT,
    LINEAR_FORWARD,
    LOSS,
    Data,
    activation_by_code,
    note,
    unit_dropped,
)

LEAST_CAPABILITY = (9, 0)
STATIC_BYTES = THREADS * (DTYPE.itemsize + 8 + 8)  # of shared memory that the kernel has beside those of a plan
int32 = types.int32
WORDS = vector(np.int32)


# ------------------------------------------------------------------------------------- the rows of a batch
@cache
def gathering(source, dtype):
    """A device function that brings rows of a batch into shared memory; where they need no conversion, by themselves.

    ``shared[to + i * ld] = data[record[start + i]]`` for the rows and columns; there when copies have been waited for
    and threads have met.
    """
    copy, number = asynchronous_copy(1), dtype.type
    as_it_is = source == dtype

    @device_function
    def gather(data, columns, record, start, rows, shared, to, ld):
        for e in range(cuda.threadIdx.x, rows * columns, THREADS):
            i, j = split(e, columns)
            there = element(data, record[start + i], j)
            if as_it_is:
                copy(shared, int32(to + i * ld + j), data.data, there, int32(1))
            else:
                shared[to + i * ld + j] = number(data.data[there])

    return gather


def of_labels(source):
    """Device functions that bring the labels of a batch, and give that of a row."""
    gather = gathering(source, np.dtype(np.int64))

    @device_function
    def gather_labels(data, record, start, rows, shared, long, room, odd):
        gather(data, 1, record, start, rows, long, room.labels + odd * room.labels_step, 1)

    @device_function
    def label_of(shared, long, room, odd, i):
        return Row(long, room.labels + odd * room.labels_step + i)

    return gather_labels, label_of


def of_targets(source):
    """The same of targets that are as many numbers as a prediction."""
    gather = gathering(source, DTYPE)

    @device_function
    def gather_targets(data, record, start, rows, shared, long, room, odd):
        to = room.targets + odd * room.targets_step
        gather(data, room.classes, record, start, rows, shared, to, room.targets_ld)

    @device_function
    def target_of(shared, long, room, odd, i):
        return Row(shared, room.targets + odd * room.targets_step + i * room.targets_ld)

    return gather_targets, target_of


@cache
def target_functions(loss, y_dtype):
    """Those of `of_labels` or of `of_targets`, as a loss takes them."""
    return (of_labels if loss in layout.LABEL_LOSSES else of_targets)(y_dtype)


@device_function
def weigh(wide, room, rows, n, data, record, start, first, sums):
    """The weights of the block's rows in the loss of ``n``."""
    thread = cuda.threadIdx.x
    scale = 1 / np.float64(n)
    if data.weighted:
        scale = weight_scale(n, record, start, data.row_weight, sums)
    for i in range(thread, rows, THREADS):
        weight = data.row_weight[record[start + first + i]] * scale if data.weighted else scale
        wide[room.weights + i] = weight


# ------------------------------------------------------------------------------------- there and back
@cache
def losses_of_rows(loss, y_dtype):
    """A device function: the losses and hits of the block's rows, and the gradient of the prediction."""
    loss_of = loss_of_row(loss, DTYPE)
    _, target_of = target_functions(loss, y_dtype)

    @device_function
    def losses(shared, wide, long, room, rows, odd, parameter, team):
        """The losses and hits of the block's rows, and the gradient of the prediction."""
        height = THREADS // team.count
        for base in range(0, rows, height):
            i = base + cuda.threadIdx.x // team.count
            inside = i < rows
            at = i if inside else np.int64(0)
            loss, hit = loss_of(
                team, inside, room.classes, parameter, Row(shared, room.prediction + at * room.prediction_ld),
                target_of(shared, long, room, odd, at), wide[room.weights + at],
                Row(shared, room.gradient + at * room.gradient_ld),
            )  # fmt: skip
            if inside and team.lane == 0:
                shared[room.losses + i] = loss
                long[room.hits + i] = hit

    return losses


def products_of(precision, value, derivative):
    """The three products of a linear layer, as device functions."""
    if precision == "tf32":
        return cluster_tensor_cores.products(value, derivative)
    return products(value, derivative, formulas(DTYPE)["fma"])


@cache
def walking(loss, activations, precision, y_dtype):
    """Device functions that take the rows of the block forward and back, and that make the gradients of parameters."""
    number, dropped, losses = DTYPE.type, unit_dropped(DTYPE), losses_of_rows(loss, y_dtype)
    value, derivative = activation_by_code(activations, DTYPE)
    forward_product, backward_product, weights_product = products_of(precision, value, derivative)

    @device_function
    def unit_kept(x, probability, word, at, key, record, first_number, i, j):
        """What dropout makes of a unit."""
        of_layer = np.uint64(key) + np.uint64(word[at + NUMBER])
        return dropped(x, probability, splitmix64(of_layer), record[first_number + i], j)

    @device_function
    def by_elements(shared, word, at, rows, columns, x_at, other_at, p, exact, key, record, first_number):
        """An operation that is no product, element by element."""
        operation, code = word[at + OPERATION], word[at + ACTIVATION]
        for e in range(cuda.threadIdx.x, rows * columns, THREADS):
            i, j = split(e, columns)
            x = shared[x_at + i * word[at + LD_X] + j]
            if operation == DROPOUT:
                x = unit_kept(x, exact, word, at, key, record, first_number, i, j)
            elif operation == ACTIVATION_FORWARD:
                x = value(code, x, p)
            else:
                other = shared[other_at + i * word[at + LD_OTHER] + j]
                if operation == ADD:
                    x = x + other
                else:
                    x = x * derivative(code, other, p)
            shared[word[at + OUT] + i * word[at + LD_OUT] + j] = x

    @device_function
    def walk(
        shared, word, wide, long, room, rows, odd, x_now, numbers, key, record, first_number, loss_parameter, team
    ):
        """Take the rows of the block forward and back."""
        for r in range(room.back):
            at = room.table + r * WIDTH
            operation, code = word[at + OPERATION], word[at + ACTIVATION]
            exact = numbers[word[at + INSTRUCTION]]
            terms, columns, ld_x, ld_other = word[at + TERMS], word[at + COLUMNS], word[at + LD_X], word[at + LD_OTHER]
            x, other, out, ld_out = word[at + X], word[at + OTHER], word[at + OUT], word[at + LD_OUT]
            x, other = x_now if x == INPUT else x, x_now if other == INPUT else other
            weight, ld_weight, bias, p = word[at + WEIGHT], word[at + LD_WEIGHT], word[at + BIAS], number(exact)
            if operation == LINEAR_FORWARD:
                forward_product(
                    shared, rows, terms, columns, x, ld_x, weight, ld_weight, bias, out, ld_out, other, ld_other,
                    code, p,
                )  # fmt: skip
            elif operation == LINEAR_BACKWARD_INPUT:
                backward_product(
                    shared, rows, terms, columns, x, ld_x, weight, ld_weight, out, ld_out, other, ld_other, code, p
                )
            elif operation == LOSS:
                losses(shared, wide, long, room, rows, odd, loss_parameter, team)
            else:
                by_elements(shared, word, at, rows, columns, x, other, p, exact, key, record, first_number)
            cuda.syncthreads()

    @device_function
    def make_gradients(shared, word, room, rows, x_now):
        """The gradients of all parameters that train, of the block's rows."""
        for r in range(room.back, room.end):
            at = room.table + r * WIDTH
            x = word[at + X]
            weights_product(
                shared, rows, word[at + TERMS], word[at + COLUMNS], x_now if x == INPUT else x, word[at + LD_X],
                word[at + OTHER], word[at + LD_OTHER], word[at + WEIGHT], word[at + LD_WEIGHT], word[at + BIAS],
            )  # fmt: skip

    return walk, make_gradients


# ------------------------------------------------------------------------------------- what blocks share
@device_function
def sum_losses(shared, wide, long, room, rows, row_lanes, sums, counts):
    """The sum of the losses of the block's rows, and of their hits, where other blocks find them."""
    lane, loss_sum, hits = cuda.threadIdx.x % row_lanes, np.float64(0), np.int64(0)
    for i in range(lane, rows, row_lanes):
        loss_sum += wide[room.weights + i] * np.float64(shared[room.losses + i])
        hits += long[room.hits + i]
    loss_sum = sum_over_lanes(sums, loss_sum, lane, row_lanes)
    hits = sum_over_lanes(counts, hits, lane, row_lanes)
    if cuda.threadIdx.x == 0:
        wide[room.sums] = loss_sum
        long[room.sums + 1] = hits


@device_function
def over_blocks(total, array, at, blocks):
    """``total`` and ``array[at]`` of every block, added one after another; the loads need not wait for the sums."""
    for block in range(FEW_BLOCKS):
        total += ptx.from_block(array, at, int32(block))
    if blocks > FEW_BLOCKS:
        for block in range(FEW_BLOCKS, MANY_BLOCKS):
            total += ptx.from_block(array, at, int32(block))
    return total


@device_function
def to_blocks(array, at, blocks, x):
    """``array[at] = x`` in every block."""
    for block in range(FEW_BLOCKS):
        ptx.to_block(array, at, int32(block), x)
    if blocks > FEW_BLOCKS:
        for block in range(FEW_BLOCKS, MANY_BLOCKS):
            ptx.to_block(array, at, int32(block), x)


@device_function
def sum_blocks(wide, long, room):
    """The loss of the batch and its hits."""
    loss_sum = over_blocks(np.float64(0), wide, room.sums, room.blocks)
    return loss_sum, over_blocks(np.int64(0), long, room.sums + 1, room.blocks)


@cache
def sharing(optimizer):
    """Device functions: fill the block's shared memory, update its share of the parameters, and give it back."""
    update, states_count, zero = formulas(DTYPE)[optimizer], layout.OPTIMIZER_STATES[optimizer], DTYPE.type(0)

    @device_function
    def fill(shared, word, room, share_begin, mine, table, slots, parameters, states):
        """Fill the block's shared memory with what a launch begins with."""
        thread = cuda.threadIdx.x
        for e in range(thread, room.size - room.cleared, THREADS):
            shared[room.cleared + e] = zero
        for e in range(thread, room.end * WIDTH, THREADS):
            word[room.table + e] = table[e]
        for e in range(thread, room.held, THREADS):
            shared[room.parameters + e] = parameters[slots[e]] if slots[e] >= 0 else zero
        for e in range(thread, mine, THREADS):
            slot = slots[share_begin + e]
            word[room.slots + e] = slot
            if slot >= 0:
                if states_count > 0:
                    shared[room.states + e] = states.first[slot]
                if states_count > 1:
                    shared[room.states + room.share + e] = states.second[slot]
                if states_count > 2:
                    shared[room.states + 2 * room.share + e] = states.third[slot]
        cuda.syncthreads()

    @device_function
    def update_share(shared, word, room, share_begin, mine, c):
        """Add up the gradients of the block's share, update it, and write it into the parameters of every block."""
        for e in range(cuda.threadIdx.x, mine, THREADS):
            if word[room.slots + e] >= 0:
                at, state = int32(share_begin + e), room.states + e
                g = over_blocks(zero, shared, int32(room.gradients + at), room.blocks)
                m = v = top = g
                if states_count > 0:
                    m = shared[state]
                if states_count > 1:
                    v = shared[state + room.share]
                if states_count > 2:
                    top = shared[state + 2 * room.share]
                w, m, v, top = update(c, shared[room.parameters + at], g, m, v, top)
                if states_count > 0:
                    shared[state] = m
                if states_count > 1:
                    shared[state + room.share] = v
                if states_count > 2:
                    shared[state + 2 * room.share] = top
                to_blocks(shared, int32(room.parameters + at), room.blocks, w)

    @device_function
    def give_back(shared, word, room, share_begin, mine, parameters, states):
        """Write the block's share of the parameters, and its states, to where they came from."""
        for e in range(cuda.threadIdx.x, mine, THREADS):
            slot = word[room.slots + e]
            if slot >= 0:
                parameters[slot] = shared[room.parameters + share_begin + e]
                if states_count > 0:
                    states.first[slot] = shared[room.states + e]
                if states_count > 1:
                    states.second[slot] = shared[room.states + room.share + e]
                if states_count > 2:
                    states.third[slot] = shared[room.states + 2 * room.share + e]

    return fill, update_share, give_back


# ---------------------------------------------------------------------------------------------- kernel
@made_once
def cluster_kernel(loss, optimizer, activations, precision, x_dtype, y_dtype):
    """The kernel, for data of dtypes of their own; ``activations`` are the names of those that the program has."""
    number = DTYPE.type
    gather_x, (gather_targets, _) = gathering(x_dtype, DTYPE), target_functions(loss, y_dtype)
    walk, make_gradients = walking(loss, activations, precision, y_dtype)
    coefficients, _ = update_of_element(optimizer, DTYPE)
    fill, update_share, give_back = sharing(optimizer)
    wait_for_all_copies = wait_for_copies(0)
    arrive, wait = ptx.cluster_arrive, ptx.cluster_wait
    data_type = type_of(Data, matrix(x_dtype), matrix(y_dtype), FLOATS, INT)
    room_type = type_of(Room, *(INT for _ in Room._fields))

    @kernel(
        INT, INT, INT, INT, INT, FLOAT, INTS, FLOATS, WORDS, WORDS, FLOATS, room_type, data_type, vector(DTYPE),
        states_type(DTYPE), threads=THREADS, blocks=1,
    )  # fmt: skip
    def cluster_kernel(
        n, of_block, count, lanes, row_lanes, loss_parameter, record, floats, table, slots, numbers, room, data,
        parameters, states,
    ):  # fmt: skip
        shared, word = cuda.shared.array(0, DTYPE, 16), cuda.shared.array(0, int32, 16)
        wide, long = cuda.shared.array(0, np.float64, 16), cuda.shared.array(0, np.int64, 16)
        of_lanes, sums = cuda.shared.array(THREADS, DTYPE), cuda.shared.array(THREADS, np.float64)
        counts = cuda.shared.array(THREADS, np.int64)
        thread, me = cuda.threadIdx.x, ptx.block_in_cluster()
        team = Lanes(thread % lanes, lanes, of_lanes, counts)
        first = min(me * of_block, n)
        rows = int32(min(of_block, n - first))
        share_begin = me * room.share
        mine = max(min(room.trained - share_begin, room.share), 0)
        fill(shared, word, room, share_begin, mine, table, slots, parameters, states)
        begin = record[NEXT]
        end = begin if record[STOPPED] != 0 else begin + count
        for step in range(begin - 1, end):
            # The next batch comes while this one is used; before the first there is only a next one.
            after, odd = step + 1, step % 2
            if after < end:
                start = record[ROWS] + after * record[BATCH] + first
                to = room.input + (1 - odd) * room.input_step
                gather_x(data.x, room.fan_in, record, start, rows, shared, to, room.input_ld)
                gather_targets(data.target, record, start, rows, shared, long, room, 1 - odd)
                commit_copies()
            finite = True
            if step >= begin:
                start, key = record[ROWS] + step * record[BATCH], record[record[KEYS] + step]
                number_of_first = start - record[ROWS] + record[NUMBERS] + first
                x_now = int32(room.input + odd * room.input_step)
                weigh(wide, room, rows, n, data, record, start, first, sums)
                walk(
                    shared, word, wide, long, room, rows, odd, x_now, numbers, key, record, number_of_first,
                    number(loss_parameter), team,
                )  # fmt: skip
                make_gradients(shared, word, room, rows, x_now)
                sum_losses(shared, wide, long, room, rows, row_lanes, sums, counts)
                arrive()
                c = coefficients(floats, record[COEFFICIENTS] + step * layout.COEFFICIENTS)
                wait()
                loss_sum, hits = sum_blocks(wide, long, room)
                finite = loss_sum - loss_sum == 0
                if thread == 0 and me == 0:
                    note(record, floats, step, loss_sum, hits)
                if finite:
                    update_share(shared, word, room, share_begin, mine, c)
            wait_for_all_copies()
            arrive()
            wait()
            if not finite:
                break
        give_back(shared, word, room, share_begin, mine, parameters, states)

    return cluster_kernel


# ------------------------------------------------------------------------------------------------ host
def available():
    """Whether clusters are asked for, and the GPU has them."""
    return asked("cluster") and driver.compute_capability() >= LEAST_CAPABILITY


def suits(workspace, dtypes):
    """Whether a cluster makes the steps of a workspace: clusters are `available`, and all of it fits into one.

    ``dtypes`` are those of the data's x and targets.
    """
    if not available():
        return False
    operations = workspace.program.training.operations
    has_all = workspace.program.precision in TILES and operations.issubset(steps.OPERATIONS)
    return workspace.dtype == DTYPE and has_all and bool(plan_of(workspace, dtypes))


def side_by_side():
    """How many networks may train at once: where clusters are `available`, those with multiprocessors of their own."""
    return max(driver.multiprocessors() // FEW_BLOCKS, 1) if available() else 1


def at_once(workspace, dtypes):
    """For how many networks like that of a workspace the GPU has clusters at once; 1 where it trains in another way."""
    if not suits(workspace, dtypes):
        return 1
    return max(kernel_of(workspace, dtypes).clusters_at_once(plan_of(workspace, dtypes).clusters, THREADS), 1)


def plan_of(workspace, dtypes):
    """The plan of a workspace, made once: the best one that fits; False if none does."""
    if workspace.plan is None:
        plans, function = (Plan(workspace, blocks) for blocks in blocks_of(workspace)), kernel_of(workspace, dtypes)
        workspace.plan = next((plan for plan in plans if fits(plan, function)), False)
    return workspace.plan


def fits(plan, function):
    """Whether a block may have so much shared memory, and the GPU has a place for so many blocks of the kernel."""
    if plan.bytes + STATIC_BYTES > driver.most_shared():
        return False
    return plan.room.blocks <= FEW_BLOCKS or function.clusters_at_once(plan.clusters, THREADS) > 0


def kernel_of(workspace, dtypes):
    """The kernel for the steps of a workspace, with data of these dtypes."""
    activations = tuple(sorted({instruction.activation for instruction in workspace.listing.decoded}))
    kind = workspace.loss, workspace.optimizer, activations, workspace.program.precision
    return cluster_kernel(*kind, *dtypes)


def train_steps(workspace, run, n, count, stream):
    """Make so many steps of ``n`` rows each, in as few launches as they may have."""
    plan, function, record = plan_of(workspace, run.dtypes), kernel_of(workspace, run.dtypes), workspace.record
    function.allow_clusters(plan.clusters)
    weighted = run.row_weight is not None
    data = Data(run.x, run.target, run.row_weight if weighted else workspace.rows.weight, int(weighted))
    for done in range(0, count, steps.MOST_STEPS):
        function[plan.clusters, THREADS, stream](
            n, -(-n // plan.room.blocks), min(steps.MOST_STEPS, count - done), lanes_of_row(workspace.fan_out),
            plan.row_lanes, workspace.loss_parameter, record.device, record.floats, plan.table, plan.slots,
            plan.numbers, plan.room, data, run.parameters, states_of(run.state, run.parameters),
        )  # fmt: skip


def kernels(precision):
    """Some kernels of this file: (name, kernel); every loss, optimizer and activation is in one of them."""
    for i, loss in enumerate(layout.LOSSES):
        optimizer = layout.OPTIMIZERS[i % len(layout.OPTIMIZERS)]
        activations = ("identity", *layout.ACTIVATIONS[1 + i :: len(layout.LOSSES)])
        target = np.dtype(np.int64) if loss in layout.LABEL_LOSSES else DTYPE
        name = f"cluster {loss} {optimizer} {precision}"
        yield name, cluster_kernel(loss, optimizer, activations, precision, DTYPE, target)
