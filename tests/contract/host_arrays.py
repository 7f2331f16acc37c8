"""A backend of another memory as one that takes arrays of the host, so that the table of cases is the same for all."""

from functools import wraps

import numpy as np

from fastbp.kernels.cuda import memory

# Their arrays, if any, are on the device already, or may be on the host.
AS_THEY_ARE = frozenset(
    ("name", "InferenceWorkspace", "TrainingWorkspace", "gathers", "empty", "zeros", "to_device", "to_host",
     "optimizer_call", "precisions", "synchronize", "set_num_threads", "get_num_threads", "serial", "warmup", "config")
)  # fmt: skip


class HostArrays:
    """The module of a backend, its arrays sent with all the memory around them before a call and fetched after it.

    So a view stays the view it was, two arguments that share memory still do, and what a kernel writes beside its
    output is seen.
    """

    def __init__(self, module):
        self.module = module

    def __getattr__(self, name):
        function = getattr(self.module, name)
        if name in AS_THEY_ARE:
            return function

        @wraps(function)
        def call(*arguments):
            owners = {}
            result = function(*[self._send(argument, owners) for argument in arguments])
            for owner, sent in owners.values():
                _bytes(owner)[...] = self.module.to_host(sent)
            return result

        return call

    def _send(self, argument, owners):
        if isinstance(argument, tuple):
            return tuple(self._send(part, owners) for part in argument)
        if not isinstance(argument, np.ndarray):
            return argument
        if argument.size == 0:
            return self.module.empty(argument.shape, argument.dtype)
        owner = argument
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        if id(owner) not in owners:
            owners[id(owner)] = owner, self.module.to_device(_bytes(owner))
        start = argument.ctypes.data - owner.ctypes.data
        return memory.window(owners[id(owner)][1], start, argument.shape, argument.strides, argument.dtype)


def _bytes(owner):
    """The memory of an array that owns it."""
    return (owner if owner.flags.c_contiguous else owner.T).reshape(-1).view(np.uint8)
