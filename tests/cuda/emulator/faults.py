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
KERNELS = {
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
