"""The record of a run of training steps, what these read and write: an int64 array on the host and its copy on the GPU.

Every kernel of a step finds there which step it is, so the launches of all steps are the same. A run takes one copy to
the GPU at its start, and one back at its end; in between the host waits for nothing.
"""

import threading

import numpy as np

from . import borrowing, memory

(
    NEXT,  # the step that is next; after a run, how many steps were done
    CURRENT,  # the step whose rows were gathered last; the update of the one before may still be running
    STOPPED,  # 1 after the first loss that is not finite: there are no more updates
    BATCH,  # how many rows a step has
    # Where the sections of the record begin:
    STEP_LOSS,  # the losses of the steps, float64 (steps,)
    STEP_HITS,  # how many labels were predicted, int64 (steps,)
    COEFFICIENTS,  # of the optimizer, float64 (steps, layout.COEFFICIENTS)
    KEYS,  # of dropout, uint64 (steps,)
    ROWS,  # the rows of all batches, int64 (r,)
    NUMBERS,  # the numbers by which dropout knows these rows, int64 (r,)
    FIELDS,  # the number of fields
) = range(11)


class Record:
    """A record on the host and on the GPU. It grows as needed, and then its array `device` is another one.

    Parameters
    ----------
    allocate : function (shape, dtype) -> array
        Allocates the memory on the host. A copy from memory that is not page-locked lets the host wait for all that the
        stream was given before.
    """

    def __init__(self, allocate=memory.pinned):
        self.allocate, self.capacity = allocate, 0
        self.grow(256)

    def grow(self, size):
        if size > self.capacity:
            self.capacity = 1 << (size - 1).bit_length()
            self.device = memory.empty(self.capacity, np.int64)
            self.floats = self.device.view(np.float64)
            self.host = self.allocate(self.capacity, np.int64)

    def begin(self, coefficients, keys, rows, batch_size, steps, done=0):
        """Send a run of so many steps to the GPU.

        Parameters
        ----------
        coefficients : array (steps, layout.COEFFICIENTS)
        keys : array (steps,)
        rows : array (r,), or (2, r) with the numbers for dropout in its second row
        batch_size, steps : int
        done : int
            How many steps have been made but for their update.
        """
        coefficients, keys, rows = (_on_host(array) for array in (coefficients, keys, rows))
        sections = (
            (STEP_LOSS, np.zeros(steps, np.int64)),
            (STEP_HITS, np.zeros(steps, np.int64)),
            (COEFFICIENTS, np.ascontiguousarray(coefficients, np.float64).reshape(-1).view(np.int64)),
            (KEYS, np.ascontiguousarray(keys, np.uint64).view(np.int64)),
            (ROWS, np.ascontiguousarray(rows, np.int64).reshape(-1)),
        )
        self.used = FIELDS + sum(section.size for _, section in sections)
        self.grow(self.used)
        self.host[[NEXT, CURRENT, STOPPED, BATCH]] = done, 0, 0, batch_size
        at = FIELDS
        for field, section in sections:
            self.host[field] = at
            self.host[at : at + section.size] = section
            at += section.size
        self.host[NUMBERS] = self.host[ROWS] + (0 if rows.ndim == 1 else rows.shape[1])
        memory.to_device(self.host[: self.used], self.device[: self.used])

    def end(self, step_loss, step_hits):
        """Wait for the run to end; write its losses and hits, and return how many steps were done."""
        last = int(self.host[COEFFICIENTS])  # the end of the hits
        memory.to_host(self.device[:last], self.host[:last])
        done, steps = int(self.host[NEXT]), len(step_loss)
        known = min(done + int(self.host[STOPPED]), steps)
        for out, field, dtype in ((step_loss, STEP_LOSS, np.float64), (step_hits, STEP_HITS, np.int64)):
            values = self.host[self.host[field] :][:known].view(dtype)
            if borrowing.is_on_device(out):
                memory.to_device(values.copy(), borrowing.as_device_array(out)[:known])  # the next run overwrites it
            else:
                out[:known] = values
        return done


_of_thread = threading.local()


def of_one_step(coefficients):
    """The record of a single update. The calling thread keeps its memory, as allocating would wait for the GPU."""
    if not hasattr(_of_thread, "record"):
        _of_thread.record = Record(np.empty)  # not page-locked, so a copy has read it when the call returns
    _of_thread.record.begin(coefficients, np.zeros(1, np.uint64), np.zeros(0, np.int64), 0, 1, done=1)
    return _of_thread.record


def _on_host(array):
    return memory.to_host(array) if borrowing.is_on_device(array) else np.asarray(array)
