"""Shared memory of emulated PTX: finds bytes that nobody wrote, races, and what tensor cores may not see yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from oracles.ptx_machine import Machine

POISON = 0xA5


class Shared:
    """Shared memory of all blocks; finds bytes that nobody wrote, and races.

    Two threads race for a byte if one writes and the other reads or writes it with no barrier of the block in between.
    A byte that an asynchronous copy is on its way to belongs to nobody until the copy has been waited for, and one that
    tensor cores may still be reading must not be written.
    """

    # Who used a byte since the last barrier: a thread's number, or one of these, or SOME (SYNCED) - 2 * warp: several
    # threads of one warp, (before a barrier of that warp).
    NOBODY, SEVERAL, SOME, SYNCED = -1, -2, -3, -4

    def __init__(self, blocks: int, size: int):
        """Nothing is written yet."""
        self.size = size
        self.bytes = np.full((blocks, size), POISON, np.uint8)
        self.written = np.zeros((blocks, size), bool)
        self.in_flight = np.zeros((blocks, size), bool)
        # Stored by a thread with no fence.proxy.async since. Asynchronous copies are left out: the PTX ISA wants the
        # fence there, too, but kernels in wide use have none (those of Triton 3.6, for one).
        self.unfenced = np.zeros((blocks, size), bool)
        self.multiplied = np.zeros((blocks, size), np.int32)  # products under way that read it
        self.writer = np.full((blocks, size), self.NOBODY)
        self.reader = np.full((blocks, size), self.NOBODY)

    def barrier(self, blocks: np.ndarray) -> None:
        """Order everything before it and after it, in these blocks."""
        self.writer[blocks] = self.reader[blocks] = self.NOBODY

    def barrier_of_warps(self, machine: Machine, active: np.ndarray) -> None:
        """Order what the threads of a warp do, among themselves."""
        for users in (self.writer, self.reader):
            warp = self._warp(users)
            done = (warp >= 0) & active[32 * warp]
            users[done] = self.SYNCED - 2 * warp[done]

    def _warp(self, users: np.ndarray) -> np.ndarray:
        """The one warp that used a byte, or -1."""
        return np.where(users >= 0, users // 32, np.where(users <= self.SOME, (self.SOME - users) // 2, -1))

    def _free(self, users: np.ndarray, threads: np.ndarray) -> np.ndarray:
        """Where nobody else's use matters to these threads."""
        return (users == self.NOBODY) | (users == threads) | (users == self.SYNCED - 2 * (threads // 32))

    def places(self, machine: Machine, addresses: np.ndarray, width: int, active: np.ndarray):
        """The active threads, and the index of the bytes that each of them means."""
        threads = np.flatnonzero(active)
        at = addresses[threads]
        if ((at < 0) | (at + width > self.size) | (at % width != 0)).any():
            raise IndexError(f"shared memory has {self.size} bytes; {width} were wanted at {sorted(set(at))[:8]}")
        return threads, (machine.block[threads][:, None], at[:, None] + np.arange(width))

    def arrived(self, at) -> np.ndarray:
        """The bytes at an index, all of which must have been written."""
        if self.in_flight[at].any():
            raise ValueError("shared memory is read while a copy to it has not been waited for")
        if not self.written[at].all():
            raise ValueError("shared memory is read before anything wrote it")
        return self.bytes[at]

    def claim(self, at, threads: np.ndarray) -> None:
        """Whether these threads may write there now."""
        self._meet(self.writer, at, threads, "overwrites what another wrote")
        self._meet(self.reader, at, threads, "overwrites what another read")
        if self.in_flight[at].any():
            raise ValueError("shared memory is written while a copy to it has not been waited for")
        if self.multiplied[at].any():
            raise ValueError("shared memory is written while tensor cores may be reading it")

    def land(self, at, values: np.ndarray, threads: np.ndarray) -> None:
        """The bytes of asynchronous copies that their threads have waited for; others need a barrier, too."""
        self.bytes[at] = values
        self.in_flight[at] = False
        self.written[at] = True
        self.writer[at] = threads[:, None]

    def fence(self, machine: Machine, active: np.ndarray) -> None:
        """fence.proxy.async: tensor cores may read what these threads wrote, or any before the last barrier."""
        block = np.zeros((len(self.bytes), 1), bool)
        block[machine.block[active]] = True
        warp = self._warp(self.writer)
        own = np.where(self.writer >= 0, active[self.writer], (warp >= 0) & active[32 * warp])
        self.unfenced &= ~(own | (block & (self.writer == self.NOBODY)))

    def for_tensor_cores(self, at) -> np.ndarray:
        """The bytes at an index, which are in use from now on."""
        values = self.arrived(at)
        if self.unfenced[at].any():
            raise ValueError("tensor cores read shared memory that no fence.proxy.async has made visible to them")
        if (self.writer[at] != self.NOBODY).any():
            raise ValueError("tensor cores read shared memory that was written since the last barrier")
        np.add.at(self.multiplied, at, 1)
        return values

    def product_done(self, at) -> None:
        """A product has been waited for: but each warp waits for its own, so others may still be reading."""
        np.subtract.at(self.multiplied, at, 1)
        self.reader[at] = self.SEVERAL

    def load(self, machine: Machine, addresses: np.ndarray, width: int, active: np.ndarray) -> np.ndarray:
        """``width`` bytes from each address."""
        threads, at = self.places(machine, addresses, width, active)
        values = self.arrived(at)
        self._meet(self.writer, at, threads, "reads what another wrote")
        self._note_readers(at, threads[:, None])
        out = np.zeros((machine.count, width), np.uint8)
        out[threads] = values
        return out

    def store(self, machine: Machine, addresses: np.ndarray, values: np.ndarray, active: np.ndarray) -> None:
        """Store uint8 (threads, width) of the active threads."""
        threads, at = self.places(machine, addresses, values.shape[1], active)
        self.claim(at, threads)
        self.writer[at] = threads[:, None]
        self.bytes[at] = values[threads]
        self.written[at] = self.unfenced[at] = True
        if (self.bytes[at] != values[threads]).any():  # several may write one value
            raise ValueError("two threads write different bytes to one place in shared memory, at once")

    def _note_readers(self, at, threads: np.ndarray) -> None:
        first, last = np.full(self.reader.shape, threads.max() + 1), np.full(self.reader.shape, -1)
        np.minimum.at(first, at, threads)
        np.maximum.at(last, at, threads)
        read = last >= 0
        now = self._joined(first[read], last[read])
        before = self.reader[read]
        mine = (before == self.NOBODY) | (before == self.SYNCED - 2 * self._warp(now))
        self.reader[read] = np.where(mine, now, self._joined(before, now))

    def _joined(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        warp = self._warp(one)
        several = np.where((warp >= 0) & (warp == self._warp(other)), self.SOME - 2 * warp, self.SEVERAL)
        return np.where(one == other, one, several)

    def _meet(self, users: np.ndarray, at, threads: np.ndarray, what: str) -> None:
        wrong = ~self._free(users[at], threads[:, None])
        if wrong.any():
            thread = threads[wrong.any(axis=1).argmax()]
            raise ValueError(f"thread {thread} {what} in shared memory, with no barrier between them")
