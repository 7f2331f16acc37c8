"""Our own team of threads: one function, called by every member with its number.

Compiled code called through ctypes holds no GIL, so plain Python threads run it side by side. There is no
threading layer to choose and nothing that aborts: a team belongs to the process that made it (a forked child
makes its own), and while it is busy another caller runs alone, with the same bits.
"""

import ctypes
import os
import queue
import sys
import threading


def available_cores() -> int:
    """Cores this process may use: CPU affinity, bounded by the cgroup's CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return cores


def yield_address() -> int:
    """The address of the C function that gives the core to another thread."""
    if sys.platform == "win32":
        return ctypes.cast(ctypes.windll.kernel32.SwitchToThread, ctypes.c_void_p).value
    return ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p).value


class _Member(threading.Thread):
    """A thread that waits for work for the life of the process."""

    def __init__(self, number):
        super().__init__(name=f"fastbp-{number}", daemon=True)
        self.number, self.work, self.done = number, queue.SimpleQueue(), queue.SimpleQueue()
        self.start()

    def run(self):
        while True:
            self.work.get()(self.number)
            self.done.put(None)


_busy = threading.Lock()
_members = []
_process = None


def run(function, threads: int) -> int:
    """Call ``function(thread, threads)`` on ``threads`` threads, this one included; returns how many there were.

    One only, when the team is at work for another caller.
    """
    global _busy, _members, _process
    if _process != os.getpid():
        _busy, _members, _process = threading.Lock(), [], os.getpid()
    if threads == 1 or not _busy.acquire(blocking=False):
        function(0, 1)
        return 1
    try:
        while len(_members) < threads - 1:
            _members.append(_Member(len(_members) + 1))
        team = _members[: threads - 1]
        for member in team:
            member.work.put(lambda number: function(number, threads))
        function(0, threads)
        for member in team:
            member.done.get()
    finally:
        _busy.release()
    return threads
