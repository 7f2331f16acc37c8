"""Streams of a GPU that does everything as late, or everything as early, as the events between them allow."""

from types import SimpleNamespace

import numpy as np

LAUNCHES, COPIES = 0, 1  # 0 as in the simulator


class Event:
    """Something that a stream comes to."""

    def __init__(self, streams, of):
        self.streams, self.of, self.came = streams, of, False

    def synchronize(self):
        while not self.came:
            self.streams.next(self.of)


class Streams:
    """What the backend has of streams. ``early``: the stream that works at once where it waits for nothing, or None."""

    def __init__(self, early=None):
        self.early, self.queues, self.log = early, {LAUNCHES: [], COPIES: []}, []

    def next(self, of):
        """The next thing of a stream, and before it what it waits for."""
        action = self.queues[of].pop(0)
        if isinstance(action, Event) and action.of == of:
            action.came = True
        elif isinstance(action, Event):
            action.synchronize()
        else:
            action()

    def add(self, on, action):
        self.queues[on].append(action)
        queue = [] if self.early is None else self.queues[self.early]
        while queue and not (isinstance(queue[0], Event) and queue[0].of != self.early and not queue[0].came):
            self.next(self.early)

    def launch(self, function):
        self.add(LAUNCHES, function)

    def finish(self):
        for of, queue in self.queues.items():
            while queue:
                self.next(of)

    # ------------------------------------------------------------------------- as the backend has it
    def stream(self):
        return LAUNCHES

    def copy_stream(self):
        return COPIES

    def send(self, host, to):
        def copy():
            to[...] = host

        self.log.append(len(host))
        self.add(COPIES, copy)

    def mark(self, of):
        event = Event(self, of)
        self.add(of, event)
        return event

    def follow(self, event, on):
        self.add(on, event)

    def pinned(self, shape, dtype):
        return unlike_anything(shape, dtype)


class LateCopies(Streams):
    """Copies as late as may be, beside the launches of the simulator, which are made at once."""

    def mark(self, of):
        event = super().mark(of)
        if of == LAUNCHES:
            event.synchronize()
        return event

    def follow(self, event, on):
        if on == LAUNCHES:
            event.synchronize()
        else:
            super().follow(event, on)


def unlike_anything(shape, dtype):
    """An array with values that no test has."""
    return np.full(shape, np.nan if np.dtype(dtype).kind == "f" else -77, dtype)


def kernels(streams):
    """What `Pieces` uses of a `DeviceKernels`."""
    return SimpleNamespace(streams=streams, memory=streams, empty=unlike_anything)
