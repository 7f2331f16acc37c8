"""The emulated GPU finds faults: kernels that have one, each in a process of its own, as a fault ends a context.

Run by test_emulator.py.
"""

import os
import sys
import traceback

import pytest

from fastbp.kernels import cuda  # noqa: F401 - here, so that the processes below need not import it

BEGIN = """
import numpy as np
from numba import cuda, float32, int32

def run(kernel, threads=64, size=64, blocks=1):
    out = cuda.to_device(np.zeros(size, np.float32))
    kernel[blocks, threads](out)
    cuda.synchronize()
    print(out.copy_to_host().tolist())
"""
# Thread 0 copies 64 numbers; WAIT and BYTES are filled in.
BULK_COPY = """
from fastbp.kernels.cuda import compiling, memory, streams, warpgroup

copy_panel = warpgroup.copy_panel(1)

@compiling.kernel(compiling.vector(np.int32), compiling.vector(np.float32), threads=64, shared=264)
def kernel(source, out):
    shared, i, barrier = cuda.shared.array(0, int32), cuda.threadIdx.x, 64
    if i == 0:
        warpgroup.make_barrier(shared, barrier, int32(1))
        warpgroup.show_barriers()
    cuda.syncthreads()
    if i == 0:
        warpgroup.announce(shared, barrier, int32(BYTES))
        copy_panel(shared, 0, source, 0, int32(256), barrier)
    while WAIT:
        pass
    out[i] = shared[i]

source, out = memory.to_device(np.arange(63, -1, -1, np.int32)), memory.to_device(np.zeros(64, np.float32))
kernel[1, 64, streams.stream()](source, out)
print(memory.to_host(out).tolist())
"""
WAIT = "warpgroup.is_over(shared, barrier, int32(0)) == 0"
KERNELS = {
    "a bulk copy": (BULK_COPY.replace("WAIT", WAIT).replace("BYTES", "256"), None),
    "a bulk copy that nobody waits for": (BULK_COPY.replace("WAIT", "False").replace("BYTES", "256"), "race"),
    "a wait for the phase before": (
        BULK_COPY.replace("WAIT", WAIT.replace("(0)", "(1)")).replace("BYTES", "256"),
        "to which a copy is under way",
    ),
    "bytes that never come": (BULK_COPY.replace("WAIT", WAIT).replace("BYTES", "512"), "deadlock"),
    "sums": (
        """
@cuda.jit
def kernel(out):
    shared, i = cuda.shared.array(64, float32), cuda.threadIdx.x
    shared[i] = i
    cuda.syncthreads()
    out[i] = shared[63 - i]
run(kernel)
""",
        None,
    ),
    "no barrier": (
        """
@cuda.jit
def kernel(out):
    shared, i = cuda.shared.array(64, float32), cuda.threadIdx.x
    shared[i] = i
    out[i] = shared[63 - i]
run(kernel)
""",
        "race",
    ),
    "no second barrier": (
        """
@cuda.jit
def kernel(out):
    shared, i = cuda.shared.array(64, float32), cuda.threadIdx.x
    shared[i] = i
    cuda.syncthreads()
    out[i] = shared[63 - i]
    shared[i] = 0
run(kernel)
""",
        "race",
    ),
    "an element too far": (
        """
@cuda.jit
def kernel(out):
    out[cuda.threadIdx.x + 1] = 1
run(kernel)
""",
        "write of memory that is not allocated",
    ),
    "shared memory too small": (
        """
@cuda.jit
def kernel(out):
    shared, i = cuda.shared.array(63, float32), cuda.threadIdx.x
    shared[i] = i
    cuda.syncthreads()
    out[i] = shared[i]
run(kernel)
""",
        "shared access at 252 beyond",
    ),
    "a barrier for some": (
        """
@cuda.jit
def kernel(out):
    if cuda.threadIdx.x < 48:
        cuda.syncthreads()
    out[cuda.threadIdx.x] = 1
run(kernel)
""",
        "a barrier that some threads of a warp never reach",
    ),
    "a barrier for the warps that have not ended": (
        """
@cuda.jit
def kernel(out):
    shared, i = cuda.shared.array(64, float32), cuda.threadIdx.x
    if i < 64:
        shared[i] = i
        cuda.syncthreads()
        out[i] = shared[63 - i]
run(kernel, threads=96)
""",
        None,
    ),
    "too many threads": (
        """
@cuda.jit(launch_bounds=32)
def kernel(out):
    out[cuda.threadIdx.x] = 1
run(kernel)
""",
        "64 threads a block, of 32",
    ),
    "pinned memory is reused before the copy": (
        """
host, out = cuda.pinned_array(64, np.float32), cuda.device_array(64, np.float32)
stream = cuda.stream()
host[:] = 1
out.copy_to_device(host, stream=stream)
host[:] = 2
stream.synchronize()
assert (out.copy_to_host() == 1).all()
""",
        "AssertionError",
    ),
    "streams that do not wait for one another": (
        """
@cuda.jit
def kernel(out):
    out[cuda.threadIdx.x] += 1
one, other = cuda.stream(), cuda.stream()
out = cuda.to_device(np.zeros(64, np.float32), stream=one)
one.synchronize()
kernel[1, 64, one](out)
result = out.copy_to_host(stream=other)
other.synchronize()
assert (result == 1).all()
""",
        "AssertionError",
    ),
}
IN_CLUSTER = """
from fastbp.kernels.cuda import compiling, memory, streams
from fastbp.kernels.cuda.ptx import block_in_cluster, cluster_arrive, cluster_wait, from_block, to_block

def run(function, blocks=2, shared=0, allowed=None):
    kernel = compiling.kernel(compiling.vector(np.float32), threads=32)(function)
    if allowed is not None:
        kernel.allow_clusters(compiling.Clusters(1, allowed, 0))
    out = memory.to_device(np.zeros(32 * blocks, np.float32))
    kernel[compiling.Clusters(1, blocks, shared), 32, streams.stream()](out)
    print(memory.to_host(out).tolist())

def kernel(out):
    shared, i, me = cuda.shared.array(32, float32), cuda.threadIdx.x, block_in_cluster()
"""
MEET = "    cluster_arrive()\n    cluster_wait()\n"
WRITE, READ = "    shared[i] = 32 * me + i\n", "    out[32 * me + i] = from_block(shared, 31 - i, 1 - me)\n"
SEND, KEEP = "    to_block(shared, i, 1 - me, out[32 * me + i])\n", "    out[32 * (1 - me) + i] = shared[i]\n"
CLUSTERS = {
    "cluster: sums, fetched and sent": (WRITE + MEET + READ + MEET + SEND + MEET + KEEP, None),
    "cluster: a barrier of each block in place of the cluster's": (WRITE + "    cuda.syncthreads()\n" + READ, "race"),
    "cluster: read before it has waited": (WRITE + "    cluster_arrive()\n" + READ + "    cluster_wait()\n", "race"),
    "cluster: sent before others have read": (WRITE + MEET + KEEP + SEND + MEET, "race"),
    "cluster: no barrier before the end": (WRITE + MEET + "    if me == 0:\n    " + READ, "an end, after which others"),
    "cluster: a barrier for one block": ("    if me == 0:\n    " + MEET.replace("\n ", "\n     "), "some blocks ended"),
    "cluster: a second arrival": ("    cluster_arrive()\n" + MEET, "a second arrival"),
}
KERNELS |= {name: (IN_CLUSTER + body + "run(kernel)\n", fault) for name, (body, fault) in CLUSTERS.items()}
REFUSALS = """
run(kernel, blocks=16, allowed=16)
for options in {"blocks": 16}, {"blocks": 17, "allowed": 17}, {"shared": 1 << 16}:
    try:
        run(kernel, **options)
    except Exception as error:
        assert "INVALID_CLUSTER_SIZE" in str(error) or "INVALID_VALUE" in str(error)
    else:
        raise SystemExit("not refused")
raise SystemExit("all are refused")
"""
KERNELS["cluster: too many blocks, more of them or of shared memory than was asked for"] = (
    IN_CLUSTER + MEET + REFUSALS,
    "all are refused",
)
# Each of two blocks copies half of 64 numbers for both, when there is room in both, and sends half of what it has.
FOR_BOTH = """
from fastbp.kernels.cuda import compiling, memory, streams
from fastbp.kernels.cuda.ptx import block_in_cluster, cluster_arrive, cluster_wait
from fastbp.kernels.cuda.warpgroup import (
    announce, arrive_at_block, copy_panel, is_over, make_barrier, show_barriers,
)

copy_half = copy_panel(2)

@compiling.kernel(compiling.vector(np.int32), compiling.vector(np.float32), threads=32, shared=272)
def kernel(source, out):
    shared, i, me, come, free = cuda.shared.array(0, int32), cuda.threadIdx.x, block_in_cluster(), 64, 66
    if i == 0:
        make_barrier(shared, come, int32(1))
        make_barrier(shared, free, int32(2))
        show_barriers()
    cuda.syncwarp()
MEET
    if i < 2:
        arrive_at_block(shared, free, int32(i))
    if i == 0:
        while is_over(shared, free, int32(0)) == 0:
            pass
        announce(shared, come, int32(256))
        copy_half(shared, 32 * me, source, 32 * me, int32(128), come)
    while is_over(shared, come, int32(0)) == 0:
        pass
    cuda.syncwarp()
    out[32 * me + i] = shared[32 * me + i]
END

source, out = memory.to_device(np.arange(63, -1, -1, np.int32)), memory.to_device(np.zeros(64, np.float32))
kernel[compiling.Clusters(1, 2, kernel.shared), 32, streams.stream()](source, out)
print(memory.to_host(out).tolist())
"""
COPIES_FOR_BOTH = {
    "for both": ((), None),
    "for both: before the other has its barriers": (("MEET", "    cuda.syncthreads()\n"), "no barrier at"),
    "for both: an end before the other's": (("END", ""), "an end, after which others"),
    "for both: one comes for both": (("int32(i))", "int32(0))"), "deadlock"),
    "for both: the same half": (("copy_half(shared, 32 * me", "copy_half(shared, 0"), "to which a copy is under way"),
    "for both: half is waited for": (("int32(256)", "int32(128)"), "race"),
}
for name, (change, fault) in COPIES_FOR_BOTH.items():
    text = FOR_BOTH.replace(*change) if change else FOR_BOTH
    KERNELS["cluster: " + name] = text.replace("MEET\n", MEET).replace("END\n", MEET), fault
# Copies of x to y and z, and from y back, are captured; BODY is filled in.
GRAPH = """
from fastbp.kernels.cuda import buffers, memory, streams

x, y, z = (memory.to_device(np.arange(63, -1, -1, np.float32)) for _ in range(3))

def copy(source, to, stream):
    buffers.scale(source, 1.0, to, stream)

def launches(stream):
    branch = streams.branch(stream, "name")
BODY
streams.capture(launches)()
streams.synchronize()
print(memory.to_host(x).tolist())
"""
OUT, ASIDE, BACK = "copy(x, y, branch)", "copy(x, z, stream)", "copy(y, x, stream)"
JOIN = "streams.join(branch, stream)"
BRANCHES = {
    "branches": ((OUT, ASIDE, JOIN, BACK), None),
    "branches: one again": ((OUT, ASIDE, JOIN, BACK, "streams.branch(stream, 'name')", OUT, JOIN), None),
    "branches: not joined": ((OUT, ASIDE), "UNJOINED"),
    "branches: joined too late": ((OUT, ASIDE, BACK, JOIN), "reads what is written by"),
    "branches: joined for nothing": ((ASIDE, JOIN, OUT, BACK, JOIN), "reads what is written by"),
    "branches: one overwrites what another reads": ((OUT, "copy(z, x, stream)", JOIN), "reads what is written by"),
    "branches: one overwrites what another has read": (
        ("copy(z, x, branch)", "copy(x, y, stream)", JOIN),
        "writes what is read by",
    ),
    "branches: both write": ((OUT, "copy(x, y, stream)", JOIN), "writes what is written by"),
    "branches: one follows too little": ((ASIDE, "copy(z, y, branch)", JOIN), "writes what is read by"),
}
KERNELS |= {
    name: (GRAPH.replace("BODY", "".join(f"    {line}\n" for line in body)), fault)
    for name, (body, fault) in BRANCHES.items()
}


def in_a_fork(text, folder):
    """The exit code of Python code in a copy of this process, which has no context yet; what it prints, its errors."""
    process = os.fork()
    if process == 0:
        for stream, name in ((1, "out"), (2, "errors")):
            os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY), stream)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        code = 0
        try:
            exec(text, {"__name__": "__main__"})
        except BaseException:
            traceback.print_exc()
            code = 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status), (folder / "out").read_text(), (folder / "errors").read_text()


@pytest.mark.parametrize("name", KERNELS)
def test_fault(name, tmp_path):
    text, fault = KERNELS[name]
    code, out, errors = in_a_fork(BEGIN + text, tmp_path)
    if fault is None:
        assert out.strip() == str([float(63 - i) for i in range(64)]), errors
    else:
        assert code != 0
        assert fault in errors, errors
