"""Our own team of threads: one function, called by every member with its number.

Compiled code called through ctypes holds no GIL, so plain Python threads run it side by side. There is no
threading layer to choose and nothing that aborts: a team belongs to the process that made it (a forked child
makes its own), and while it is busy another caller runs alone, with the same bits.
"""

import ctypes
import math
import operator
import os
import queue
import sys
import threading
from contextlib import contextmanager
from functools import partial

from ..processors import available_cores

wanted = None  # threads; None: as many as there are cores, fewer for little work
calling = threading.local()  # serial: this thread works alone


def set_num_threads(threads):
    """None: as many as there are cores, fewer where timing says so."""
    global wanted
    wanted = threads


def get_num_threads():
    """Those set, or the cores there are."""
    return available_cores() if wanted is None else wanted


@contextmanager
def serial():
    """For the calling thread alone."""
    before = getattr(calling, "serial", False)
    calling.serial = True
    try:
        yield
    finally:
        calling.serial = before


class Pace:
    """Whether a whole team or one thread is faster at some work, by the time that calls took a unit of it.

    Both are tried, the faster is kept, and both are tried again after CALLS calls: other cores come and go.
    """

    CALLS = 64

    def __init__(self):
        self.calls = 0
        self.seconds = {}  # threads -> best time of a unit

    def choose(self, threads: int) -> int:
        """How many threads the next call should have."""
        self.calls += 1
        if self.calls % self.CALLS == 0:
            self.seconds.clear()
        for candidate in (threads, 1):
            if candidate not in self.seconds:
                return candidate
        return min(self.seconds, key=self.seconds.get)

    def record(self, threads: int, seconds: float):
        """What a unit of work took."""
        self.seconds[threads] = min(seconds, self.seconds.get(threads, math.inf))


def yield_address() -> int:
    """The address of the C function that gives the core to another thread."""
    if sys.platform == "win32":
        return ctypes.cast(ctypes.windll.kernel32.SwitchToThread, ctypes.c_void_p).value
    return ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p).value


class _Job:
    """What the members are to do, and who has done it."""

    def __init__(self, part):
        self.part = part
        self.finished, self.news = [], queue.SimpleQueue()


class _Member(threading.Thread):
    """A thread that waits for work for the life of the process."""

    def __init__(self, number):
        super().__init__(name=f"fastbp-{number}", daemon=True)
        self.number, self.work = number, queue.SimpleQueue()
        self.start()

    def run(self):
        while True:
            job = self.work.get()
            job.part(self.number)
            job.finished.append(self.number)
            job.news.put(None)
            del job  # what the part holds on to is free while this thread waits


def _found():
    """Begin without members: at import, and in a forked child, which has no thread of its parent but one."""
    global _busy, _members
    _busy, _members = threading.Lock(), []


_found()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_found)


def _enough_members(threads: int) -> bool:
    """Whether the team has, or now gets, so many threads with the caller's; the system may refuse new ones."""
    try:
        while len(_members) < threads - 1:
            _members.append(_Member(len(_members) + 1))
    except RuntimeError:
        return False
    return True


def run(part, threads: int) -> bool:
    """Call ``part(thread)`` on so many threads, this one included.

    Returns False, and has called nothing, when the team is at work for another caller or threads are not to be had.
    ``part`` must be C from end to end, as a `functools.partial` of a compiled function is: sending the members off
    and this thread's own part are one call then, which no handler of a signal can cut in two, and every part is
    done before what a handler raises is seen: the members work on memory of the caller.
    """
    busy, taken = _busy, []
    try:
        taken.extend(map(busy.acquire, (False,)))
        if not taken[0] or not _enough_members(threads):
            return False
        job, done, interrupt = _Job(part), [], None
        calls = [*(partial(member.work.put, job) for member in _members[: threads - 1]), partial(part, 0)]
        while True:
            try:
                if not done:
                    done.extend(map(operator.call, calls))
                while len(job.finished) < threads - 1:
                    job.news.get()
                break
            except BaseException as error:
                interrupt = error
                if not done:
                    break
        if interrupt is not None:
            raise interrupt
        return True
    finally:
        if taken == [True]:
            busy.release()
