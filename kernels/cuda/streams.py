"""The streams of launches and copies, events between them, and CUDA graphs of launches."""

import threading
import time

from .driver import cuda, require, simulated

if not simulated:
    from cuda.core import Stream


def stream():
    """The stream of all launches; it waits for the default stream of other libraries, and they for it."""
    return 0 if simulated else _stream("launches")


def copy_stream():
    """The stream of copies that are made beside the launches."""
    return 0 if simulated else _stream("copies")


_streams, _making_streams = {}, threading.Lock()
_core_streams = {}  # a stream of Numba's -> the same as cuda.core has it


def _stream(purpose):
    """One for all threads."""
    if purpose not in _streams:
        with _making_streams:
            if purpose not in _streams:
                made = cuda.stream()
                _core_streams[made] = Stream.from_handle(int(made))
                _streams[purpose] = made
    return _streams[purpose]


def core_stream(stream):
    """One of `stream`, or a graph that is being captured, as `cuda.core.launch` takes it."""
    return _core_streams.get(stream, stream)


def capture(launches):
    """``launches(stream)`` as a CUDA graph: a function that replays it on the `stream`.

    Everything it launches must have been compiled, and the arrays must stay where they are. The simulator, which has no
    graphs, launches again.
    """
    if simulated:
        return lambda: launches(stream())
    from cuda.core import Device

    device = Device()
    device.set_current()
    builder = device.create_graph_builder()
    builder.begin_building()
    launches(builder)
    graph = builder.end_building().complete()
    replay_stream = core_stream(stream())
    return lambda: graph.launch(replay_stream)


def synchronize():
    """Wait until all launches have finished."""
    require()
    cuda.synchronize()


def elapsed(work) -> float:
    """Seconds from the start of what ``work()`` launches on the `stream` to its end, by events.

    Where launches come too slowly the GPU waits, and that counts. The simulator, which has no events, takes the time.
    """
    if simulated:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    start, end = cuda.event(), cuda.event()
    start.record(stream())
    work()
    end.record(stream())
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def wait():
    """Wait until all launches before have finished; copies beside them go on."""
    if not simulated:
        stream().synchronize()


def mark(of):
    """An event: what a stream has been given so far has ended. ``synchronize()`` of it waits for that on the host."""
    event = cuda.event() if simulated else cuda.event(timing=False)
    event.record(of)
    return event


def follow(event, on):
    """Let what a stream is given from here on wait for an event."""
    event.wait(on)


def let_follow(other):
    """Make a stream of another library, numbered as in DLPack, wait for the launches before."""
    if other is not None and (not isinstance(other, int) or other < -1 or other == 0):
        raise ValueError(
            f"stream must be None, -1, 1, 2 or the handle of a CUDA stream, got {other!r}; "
            f"0 may mean different streams and is not allowed"
        )
    if simulated or other == -1:
        return
    follow(mark(stream()), cuda.external_stream(1 if other is None else other))
