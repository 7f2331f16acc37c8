"""Data that do not fit on a device: their rows are sent a piece at a time, each while the steps before it run."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import checks
from .checks import Array

if TYPE_CHECKING:
    from .device import DeviceKernels


class Pieces:
    """Sends rows of arrays of the host to the device in some order, a piece at a time: the next while one is used.

    Pieces use two places in turn. Each has page-locked memory, where the host gathers rows, and memory of the device.
    The host gathers once the last copy from there has ended, a copy begins once the launches that read its target have
    ended, and launches wait for the copy that they read.

    Parameters
    ----------
    kernels : DeviceKernels
    arrays : sequence of arrays of the host, or None
    dtypes : sequence of dtypes, or None
        What they are converted to.
    before : Pieces, optional
        Its places are used again, so that memory and addresses stay the same.
    """

    def __init__(
        self,
        kernels: DeviceKernels,
        arrays: Sequence[Any],
        dtypes: Sequence[np.dtype[Any] | None],
        before: Pieces | None,
    ) -> None:
        self.streams, self.arrays, self.dtypes = kernels.streams, arrays, dtypes
        self.places = [_Place(kernels), _Place(kernels)] if before is None else before.places

    def start(self, order: Array, rows: int) -> None:
        """Cut an order of rows into pieces of so many."""
        self.order, self.rows = order, rows
        for place in self.places:
            place.holds = None

    def prepare(self, piece: int) -> None:
        """Gather a piece and begin to copy it, unless that has been done or there are no more."""
        place, rows = self.places[piece % 2], self.order[piece * self.rows : (piece + 1) * self.rows]
        if place.holds == piece or not len(rows):
            return
        place.holds = None
        place.gather(self.arrays, self.dtypes, rows)
        place.copy()
        place.holds = piece

    def arrays_of(self, piece: int) -> list[Any]:
        """The arrays of a piece, for launches from here on."""
        self.prepare(piece)
        place = self.places[piece % 2]
        self.streams.follow(place.copied, self.streams.stream())
        return place.there

    def launched(self, piece: int) -> None:
        """Mark that the launches that read a piece have been made."""
        self.places[piece % 2].read = self.streams.mark(self.streams.stream())


class _Place:
    """Memory for a piece, on the host and on the device."""

    def __init__(self, kernels):
        self.kernels, self.streams = kernels, kernels.streams
        self.memory = {}  # place among the arrays -> page-locked memory, memory of the device
        self.grown = False  # whether memory is new: launches may still use what had it before
        self.holds = None  # the piece
        self.copied = self.read = None  # events: the last copy, and the last launches that read it, have ended
        weakref.finalize(self, _release, self.streams, self.memory).atexit = False

    def gather(self, arrays, dtypes, rows):
        if self.copied is not None:
            self.copied.synchronize()
        self.here, self.there = [], []
        for argument, (array, dtype) in enumerate(zip(arrays, dtypes, strict=True)):
            here, there = (None, None) if array is None else self._room(argument, (len(rows), *array.shape[1:]), dtype)
            self.here.append(here)
            self.there.append(there)
            if array is not None:
                _gather(array, rows, here)

    def _room(self, argument, shape, dtype):
        """The first rows of the memory of an argument, which grows."""
        here, there = self.memory.get(argument, (None, None))
        if here is None or len(here) < shape[0] or (here.dtype, here.shape[1:]) != (dtype, shape[1:]):
            here, there = self.kernels.memory.pinned(shape, dtype), self.kernels.empty(shape, dtype)
            self.memory[argument], self.grown = (here, there), True
        return here[: shape[0]], there[: shape[0]]

    def copy(self):
        copies = self.streams.copy_stream()
        if self.grown:
            self.read, self.grown = self.streams.mark(self.streams.stream()), False
        if self.read is not None:
            self.streams.follow(self.read, copies)
        for here, there in zip(self.here, self.there, strict=True):
            if here is not None:
                self.kernels.memory.send(here, there)
        self.copied = self.streams.mark(copies)


def _gather(array, rows, out):
    """``out = array[rows]``, converted; without an intermediate copy where the dtype is the same."""
    if array.dtype == out.dtype and checks.readable(array):
        np.take(array, rows, axis=0, out=out, mode="clip")  # the other modes write to a copy of out
    else:
        with np.errstate(all="ignore"):
            out[...] = array[rows]


def _release(streams, memory):
    """Wait for the copies that may still read or write the memory, before it is freed."""
    streams.mark(streams.copy_stream()).synchronize()
