"""What a run of training steps reads and leaves: one array of int64 on the host and its copy on the device.

Every kernel of a step finds there which step it is, so that the launches of all steps are the same. A run costs one
copy to the device, at its start, and one back, at its end; in between the host waits for nothing.
"""

import threading

import numpy as np

from . import borrowing, memory

(
    NEXT,  # the step that begins; the steps done when a run has ended
    CURRENT,  # the step whose loss is known, while its update is made
    STOPPED,  # 1 from the first loss that is not finite: no update happens any more
    BATCH,  # rows a step
    STEP_LOSS,  # where the sections begin: losses, float64 (steps,)
    STEP_HITS,  # int64 (steps,)
    COEFFICIENTS,  # float64 (steps, layout.COEFFICIENTS)
    KEYS,  # uint64 (steps,)
    ROWS,  # int64 (r,)
    NUMBERS,  # int64 (r,): those that dropout knows the rows by
    FIELDS,  # the number of fields
) = range(11)


class Record:
    """Host and device memory of a record; it grows, and then `device` is another array.

    Parameters
    ----------
    allocate : function (shape, dtype) -> array
        Makes memory of the host. From other than page-locked memory a copy waits for all that the stream was given
        before, as for rows of data that are still on their way.
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

    def begin(self, coefficients, keys, rows, batch_size, steps):
        """Send a run to the device; the arrays may be on the host or there."""
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
        self.host[[NEXT, CURRENT, STOPPED, BATCH]] = 0, 0, 0, batch_size
        at = FIELDS
        for field, section in sections:
            self.host[field] = at
            self.host[at : at + section.size] = section
            at += section.size
        self.host[NUMBERS] = self.host[ROWS] + (0 if rows.ndim == 1 else rows.shape[1])
        memory.to_device(self.host[: self.used], self.device[: self.used])

    def end(self, step_loss, step_hits):
        """Wait for the run; write its losses and hits and return the number of steps done."""
        last = int(self.host[COEFFICIENTS])  # the end of the hits
        memory.to_host(self.device[:last], self.host[:last])
        done, steps = int(self.host[NEXT]), len(step_loss)
        known = min(done + int(self.host[STOPPED]), steps)
        for out, field, dtype in ((step_loss, STEP_LOSS, np.float64), (step_hits, STEP_HITS, np.int64)):
            values = self.host[self.host[field] :][:known].view(dtype)
            if borrowing.is_on_device(out):
                memory.to_device(values.copy(), borrowing.as_device_array(out)[:known])  # the record is used again
            else:
                out[:known] = values
        return done


_of_thread = threading.local()


def of_one_step(coefficients):
    """The record of a single update, in memory that the calling thread keeps: allocating some waits for the GPU."""
    if not hasattr(_of_thread, "record"):
        _of_thread.record = Record(np.empty)  # a copy from other memory than page-locked has left it when it returns
    _of_thread.record.begin(coefficients, np.zeros(1, np.uint64), np.zeros(0, np.int64), 0, 1)
    return _of_thread.record


def _on_host(array):
    return memory.to_host(array) if borrowing.is_on_device(array) else np.asarray(array)
