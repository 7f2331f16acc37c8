"""The emulated GPU finds faults: kernels that have one, each in a process of its own, as a fault ends a context.

Run by test_emulator.py.
"""

import subprocess
import sys

import pytest

BEGIN = """
import numpy as np
import tests.cuda.emulator.plugin
from numba import cuda, float32, int32

def run(kernel, threads=64, size=64, blocks=1):
    out = cuda.to_device(np.zeros(size, np.float32))
    kernel[blocks, threads](out)
    cuda.synchronize()
    print(out.copy_to_host().tolist())
"""
# Thread 0 copies 64 numbers; WAIT and BYTES are filled in.
BULK_COPY = """
from fastbp.kernels.cuda import warpgroup

@cuda.jit
def kernel(source, out):
    shared, i, barrier = cuda.shared.array(0, int32), cuda.threadIdx.x, 64
    if i == 0:
        warpgroup.make_barrier(shared, barrier, int32(1))
        warpgroup.show_barriers()
    cuda.syncthreads()
    if i == 0:
        warpgroup.announce(shared, barrier, int32(BYTES))
        warpgroup.copy_panel(shared, 0, source, 0, int32(256), barrier)
    while WAIT:
        pass
    out[i] = shared[i]

source, out = cuda.to_device(np.arange(63, -1, -1, np.int32)), cuda.to_device(np.zeros(64, np.float32))
kernel[1, 64, 0, 264](source, out)
cuda.synchronize()
print(out.copy_to_host().tolist())
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
    if cuda.threadIdx.x < 32:
        cuda.syncthreads()
    out[cuda.threadIdx.x] = 1
run(kernel)
""",
        "a barrier that some threads",
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


@pytest.mark.parametrize("name", KERNELS)
def test_fault(name):
    text, fault = KERNELS[name]
    process = subprocess.run([sys.executable, "-c", BEGIN + text], capture_output=True, text=True)
    if fault is None:
        assert process.stdout.strip() == str([float(63 - i) for i in range(64)]), process.stderr
    else:
        assert process.returncode != 0
        assert fault in process.stderr, process.stderr
