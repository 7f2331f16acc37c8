"""The streams of launches and copies, events between them, and CUDA graphs of launches, which may have branches."""

import contextlib
import threading
import time

from .driver import called, cuda, device, require, simulated

if not simulated:
    from .driver import EventOptions, StreamOptions, driver_calls


class Stream:
    """A stream: launches and copies that are made in their order. It and the legacy default stream wait for each other.

    Attributes
    ----------
    core : cuda.core.Stream
    handle
        Its handle, as functions of the driver take it; an integer of the stream is the same as a number.
    """

    def __init__(self):
        self.core = device().create_stream(options=StreamOptions(nonblocking=False))
        self.handle = self.core.handle

    def __int__(self):
        return int(self.handle)

    def synchronize(self):
        """Let the host wait until all that the stream was given so far has ended."""
        self.core.sync()


class Captured:
    """In place of a stream, launches of a graph that is captured: those that it is given, in their order.

    Attributes
    ----------
    core : cuda.core.Stream
    branches : dict
        By their names, the `branch`es that it has had.
    """

    def __init__(self, core):
        self.core, self.branches = core, {}


class Event:
    """The end of all that a stream was given so far."""

    def __init__(self, of, timing=False):
        self.core = of.core.record(options=EventOptions(timing_enabled=timing))

    def synchronize(self):
        """Let the host wait for it."""
        self.core.sync()

    def wait(self, on):
        """Let all that a stream is given from now on wait for it."""
        on.core.wait(self.core)


def stream():
    """The stream of the calling thread's launches: that of all launches, unless the thread has its `own_stream`.

    Who has it may launch and copy: the context of the GPU is that of the thread.
    """
    if simulated:
        return 0
    try:
        return _of_thread.stream
    except AttributeError:
        device().set_current()
        _of_thread.stream = _stream("launches")
        return _of_thread.stream


def begun() -> bool:
    """Whether the calling thread has asked for its `stream`, and so has the context of the GPU."""
    return hasattr(_of_thread, "stream")


def is_of_all() -> bool:
    """Whether the calling thread's `stream` is that of all launches."""
    return stream() is _streams["launches"]


@contextlib.contextmanager
def own_stream():
    """A context in which the calling thread's `stream` is its own, so that its launches overlap those of other threads.

    They begin after all that was launched before, and have finished when the context ends.
    """
    if simulated:
        yield
        return
    before = stream()
    launched = mark(before)
    with _making_streams:
        purpose = _free_streams.pop() if _free_streams else f"beside {len(_streams)}"
    own = _stream(purpose)
    follow(launched, own)
    _of_thread.stream = own
    try:
        yield
    finally:
        _of_thread.stream = before
        own.synchronize()
        _free_streams.append(purpose)


_of_thread = threading.local()  # stream: that of the thread's launches, once it has asked for it
_free_streams = []  # the purposes of own streams that no thread uses


def copy_stream():
    """The stream of the copies that are made while kernels run."""
    if simulated:
        return 0
    stream()  # makes the context that of the thread
    return _stream("copies")


_streams, _making_streams = {}, threading.Lock()


def _stream(purpose):
    """The stream of this purpose, the same for all threads of the host; made when it is first used."""
    if purpose not in _streams:
        with _making_streams:
            if purpose not in _streams:
                _streams[purpose] = Stream()
    return _streams[purpose]


def capture(launches):
    """Capture what ``launches(captured)`` launches as a CUDA graph; returns a function that replays it on the `stream`.

    All its kernels must have been compiled, and its arrays must stay where they are. Every `branch` must be joined
    again. In the simulator, which has no graphs, the function launches the kernels again.
    """
    if simulated:
        return lambda: launches(stream())
    builder = device().create_graph_builder()
    builder.begin_building()
    captured = Captured(builder.stream)  # whose branches live until the graph has been built
    launches(captured)
    graph = builder.end_building().complete()
    return lambda: graph.launch(stream().core)


def branch(stream, name):
    """Where launches follow all that ``stream`` has been given so far, but not what it is given next, up to a `join`.

    A graph that is captured has a branch for each name, whose launches are in their order. A stream, where all are, has
    none but itself.
    """
    if not isinstance(stream, Captured):
        return stream
    if name not in stream.branches:
        stream.branches[name] = Captured(device().create_stream(options=StreamOptions(nonblocking=True)))
    follow(mark(stream), stream.branches[name])
    return stream.branches[name]


def join(branch, stream):
    """Let all that ``stream`` is given from now on wait for what a branch of it was given."""
    if branch is not stream:
        follow(mark(branch), stream)


def synchronize():
    """Wait until all launches have finished."""
    require()
    if not simulated:
        stream()  # makes the context that of the thread
        called(driver_calls.cuCtxSynchronize())


def elapsed(work) -> float:
    """Seconds from the start of what ``work()`` launches on the `stream` to its end, measured by events.

    Where the host launches too slowly the GPU waits, and that time counts. In the simulator, which has no events, it is
    the time of the call.
    """
    if simulated:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    start = Event(stream(), timing=True)
    work()
    end = Event(stream(), timing=True)
    end.synchronize()
    return (end.core - start.core) / 1e3


def wait():
    """Let the host wait until all launches so far have finished; copies on `copy_stream` go on."""
    if not simulated:
        stream().synchronize()


def wait_for_all():
    """Let the host wait until all launches so far of all threads have finished."""
    if not simulated:
        for each in list(_streams.values()):
            each.synchronize()


def mark(of):
    """An event that has occurred when all that the stream ``of`` has been given so far has ended.

    Its method ``synchronize()`` lets the host wait for that.
    """
    return cuda.event() if simulated else Event(of)


def follow(event, on):
    """Let all that the stream ``on`` is given from now on wait for an event."""
    event.wait(on)


def let_follow(other):
    """Make a stream of another library wait for all launches so far.

    ``other`` is what ``__dlpack__`` takes for a stream: None or 1 is the legacy default stream, 2 the default stream of
    the thread, -1 waits for nothing, others are handles. ValueError for anything else.
    """
    if other is not None and (not isinstance(other, int) or other < -1 or other == 0):
        raise ValueError(
            f"stream must be None, -1, 1, 2 or the handle of a CUDA stream, got {other!r}; "
            f"0 may mean different streams and is not allowed"
        )
    if simulated or other == -1:
        return
    event = mark(stream())
    called(driver_calls.cuStreamWaitEvent(1 if other is None else other, event.core.handle, 0))


def wait_for(other):
    """Let the host wait for a stream of another library, by its handle; None is none."""
    if not simulated and other is not None:
        stream()  # makes the context that of the thread
        called(driver_calls.cuStreamSynchronize(other))
