"""Communicators for training on several processes: what `Sequential.fit` needs of MPI or NCCL, and no more.

A communicator has five members. ``rank`` and ``size`` number the processes; ``allreduce_`` sums an array over all of
them, in place; ``broadcast_`` copies one of them to all; ``barrier`` waits for all. Processes are placed, and messages
carried, by MPI (the package mpi4py) and, between GPUs, by NCCL (the package nccl4py).
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any, Protocol

import numpy as np

from . import backend

__all__ = ["Communicator", "alone", "mpi", "nccl"]

ABORTED = 1  # the exit code of ranks that one of them has ended
PASSING_ON = 0.5  # seconds in which the launcher passes on what ranks have printed: what it has not, an abort loses


class Communicator(Protocol):
    """What ``fit(communicator=…)`` takes.

    Attributes
    ----------
    rank : int
        The number of this process, from 0.
    size : int
        How many there are.
    """

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...

    def allreduce_(self, buffer: Any) -> None:
        """Replace an array by its sum over all ranks, ``buffer <- Σ_r buffer_r``; all get the same bits.

        Parameters
        ----------
        buffer : C-contiguous array of NumPy, of float32, float64, int64 or uint8
        """
        ...

    def broadcast_(self, buffer: Any, root: int = 0) -> None:
        """Replace an array by that of the rank ``root``; shapes and dtypes are the same everywhere."""
        ...

    def barrier(self) -> None:
        """Wait until every rank has come here."""
        ...


class Alone:
    """One process: sums and copies are what they are."""

    rank, size = 0, 1

    def allreduce_(self, buffer: Any) -> None:
        """Nothing to add."""

    def broadcast_(self, buffer: Any, root: int = 0) -> None:
        """Nothing to copy."""

    def barrier(self) -> None:
        """Nobody to wait for."""


def alone() -> Alone:
    """The communicator of one process, with which `fit` does what it does without any.

    Returns
    -------
    Communicator
    """
    return Alone()


# -------------------------------------------------------------------------------------------- MPI
class MPIRanks:
    """The ranks of a communicator of mpi4py; arrays of NumPy are reduced in place.

    Parameters
    ----------
    MPI : module
        ``mpi4py.MPI``.
    comm : mpi4py.MPI.Intracomm
        Messages go through a copy of it, so that they meet no others.
    """

    def __init__(self, MPI: Any, comm: Any) -> None:
        self._MPI, self._comm = MPI, comm.Dup()
        self.rank, self.size = self._comm.Get_rank(), self._comm.Get_size()

    def allreduce_(self, buffer: Any) -> None:
        """``MPI_Allreduce`` with ``MPI_IN_PLACE``."""
        self._comm.Allreduce(self._MPI.IN_PLACE, buffer, op=self._MPI.SUM)

    def broadcast_(self, buffer: Any, root: int = 0) -> None:
        """``MPI_Bcast``."""
        self._comm.Bcast(buffer, root=root)

    def barrier(self) -> None:
        """``MPI_Barrier``."""
        self._comm.Barrier()

    def abort(self) -> None:
        """End all ranks at once; those that wait for this one would wait for ever."""
        self._MPI.COMM_WORLD.Abort(ABORTED)

    def share_of_cores(self) -> int:
        """How many threads this rank may have, so that the ranks of a host together have one a core.

        A core that several ranks may use counts as a part of one for each.
        """
        if not hasattr(os, "sched_getaffinity"):
            return 1
        host = self._comm.Split_type(self._MPI.COMM_TYPE_SHARED)
        own = os.sched_getaffinity(0)
        users = [core for cores in host.allgather(sorted(own)) for core in cores]
        granted = backend.load("cpu").get_num_threads() / len(own)  # less than 1 where a quota grants fewer
        share = granted * sum(1 / users.count(core) for core in own)
        host.Free()
        return max(1, int(share + 1e-9))


def mpi(comm: Any = None) -> MPIRanks:
    """The communicator of processes that MPI has started, as ``mpiexec -n 4 python train.py`` does.

    Every rank calls it, and passes what it gets to `fit`. Where there are several ranks, two things change for the
    process: an exception that nobody catches ends all ranks, as those that wait for this one would wait for ever; and
    unless `fastbp.set_num_threads` was called before, a rank takes its share of the cores of its host.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm, optional
        By default ``MPI.COMM_WORLD``.

    Returns
    -------
    Communicator

    Raises
    ------
    ImportError
        The package mpi4py is not there, or it finds no MPI.
    """
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise ImportError(
            f'fastbp.distributed.mpi needs mpi4py and an MPI library: pip install "fastbp[mpi]" ({error})'
        ) from error
    ranks = MPIRanks(MPI, MPI.COMM_WORLD if comm is None else comm)
    if ranks.size > 1:
        _end_all_on_error(ranks)
        if not backend.threads_are_set():
            backend.set_num_threads(ranks.share_of_cores())
    return ranks


def _end_all_on_error(ranks):
    """Let an exception that nobody catches be printed, and then end all ranks."""
    before = sys.excepthook

    def report_and_abort(kind, error, traceback):
        before(kind, error, traceback)
        print(f"fastbp: rank {ranks.rank} of {ranks.size} failed, which ends all of them", file=sys.stderr, flush=True)
        sys.stdout.flush()
        time.sleep(PASSING_ON)
        ranks.abort()

    sys.excepthook = report_and_abort


# ------------------------------------------------------------------------------------------- NCCL
class NCCLRanks:
    """Ranks that have a GPU each: arrays of a device go through NCCL, those of the host through MPI.

    Parameters
    ----------
    core : module
        ``nccl.core``.
    host : MPIRanks
        It carries the identity of the new communicator, and arrays of the host.
    """

    def __init__(self, core: Any, host: Any) -> None:
        self._core, self._host = core, host
        self.rank, self.size = host.rank, host.size
        identity = np.zeros(len(bytes(core.get_unique_id(empty=True))), np.uint8)
        if self.rank == 0:
            identity[:] = np.frombuffer(bytes(core.get_unique_id()), np.uint8)
        host.broadcast_(identity)
        self._comm = core.Communicator.init(self.size, self.rank, core.UniqueId.from_bytes(identity.tobytes()))

    def allreduce_(self, buffer: Any) -> None:
        """``ncclAllReduce``, on the stream that the array belongs to; an array of the host is reduced there."""
        if isinstance(buffer, np.ndarray):
            self._host.allreduce_(buffer)
        else:
            self._comm.allreduce(buffer, buffer, self._core.SUM, stream=_stream_of(buffer))

    def broadcast_(self, buffer: Any, root: int = 0) -> None:
        """``ncclBroadcast``, or ``MPI_Bcast`` of an array of the host."""
        if isinstance(buffer, np.ndarray):
            self._host.broadcast_(buffer, root)
        else:
            self._comm.broadcast(buffer, buffer, root, stream=_stream_of(buffer))

    def barrier(self) -> None:
        """``MPI_Barrier``; what is on a stream is in order there."""
        self._host.barrier()

    def abort(self) -> None:
        """End all ranks at once."""
        self._host.abort()


def _stream_of(buffer):
    """The CUDA stream that an array says its work is on; the default stream where it says none."""
    return buffer.__cuda_array_interface__.get("stream") or 0


def nccl(comm: Any = None) -> NCCLRanks:
    """The communicator of processes with a GPU each, for models with ``device="cuda"``.

    MPI starts the processes and carries what is on the host; gradients go from GPU to GPU through NCCL. Every rank must
    see a GPU of its own: let the launcher set ``CUDA_VISIBLE_DEVICES``.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm, optional
        By default ``MPI.COMM_WORLD``.

    Returns
    -------
    Communicator

    Raises
    ------
    ImportError
        The packages mpi4py or nccl4py are not there.
    """
    try:
        from nccl import core
    except (ImportError, RuntimeError) as error:
        raise ImportError(
            f'fastbp.distributed.nccl needs nccl4py and NCCL: pip install "fastbp[nccl]" ({error})'
        ) from error
    return NCCLRanks(core, mpi(comm))
