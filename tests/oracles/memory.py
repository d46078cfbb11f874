"""Memory of an emulated GPU: named NumPy arrays at made-up addresses, with every access checked.

Shared by the oracles that execute compiled code, `ptx` and `cdna`. An access must be aligned to its own width, as GPUs
want it, and lie wholly within one array; anything else raises, naming the address, the array and the thread.
"""

from __future__ import annotations

import numpy as np

GAP = 1 << 20  # between arrays, so that an address that runs off the end of one never meets the next
FIRST = 1 << 32  # above 2**32, so that an address cut to 32 bits is found out


class AccessError(IndexError):
    """An address outside of every array, or one that is not aligned."""


class Memory:
    """Arrays that kernels read and write in place.

    stores[name]   how often each byte of an array was stored to, uint8 (it stays at 255)
    sectors[name]  how many 32-byte sectors store instructions asked for, counted a warp of 32 threads
    """

    def __init__(self, arrays: dict[str, np.ndarray], *, align: int = 256):
        """Place C-contiguous ``arrays``, each at a multiple of ``align`` bytes, which torch's allocator promises."""
        self.names, self.bases, self.bytes, self.stores = list(arrays), [], [], {}
        self.sectors = dict.fromkeys(arrays, 0)
        end = FIRST
        for name, array in arrays.items():
            if not array.flags.c_contiguous:
                raise ValueError(f"{name} is not C-contiguous")
            flat = array.reshape(-1).view(np.uint8)
            self.bases.append(end)
            self.bytes.append(flat)
            self.stores[name] = np.zeros(flat.size, np.uint8)
            end += -(-(flat.size + GAP) // align) * align

    def address(self, name: str) -> int:
        """Where an array begins."""
        return self.bases[self.names.index(name)]

    def load(self, addresses: np.ndarray, width: int, active: np.ndarray) -> np.ndarray:
        """``width`` bytes from each address, uint8 (threads, width); zeros for threads that are not active."""
        out = np.zeros((addresses.size, width), np.uint8)
        for index, threads, offsets in self._places(addresses, width, active):
            out[threads] = self.bytes[index][offsets[:, None] + np.arange(width)]
        return out

    def store(self, addresses: np.ndarray, values: np.ndarray, active: np.ndarray) -> None:
        """Store uint8 ``values`` (threads, width) of the active threads; of several to one byte, the last wins."""
        width = values.shape[1]
        for index, threads, offsets in self._places(addresses, width, active):
            at = offsets[:, None] + np.arange(width)
            self.bytes[index][at] = values[threads]
            asked = np.stack([threads // 32, offsets // 32])  # an access is no wider than a sector, and aligned
            self.sectors[self.names[index]] += np.unique(asked, axis=1).shape[1]
            counts = self.stores[self.names[index]]
            counts += np.minimum(np.bincount(at.ravel(), minlength=counts.size), 255 - counts).astype(np.uint8)

    def _places(self, addresses: np.ndarray, width: int, active: np.ndarray):
        """Array, threads and offsets of an access; raises for the first thread that may not make it."""
        threads = np.flatnonzero(active)
        at = addresses.astype(np.int64)[threads]
        which = np.searchsorted(self.bases, at, side="right") - 1
        offsets = at - np.asarray(self.bases)[which]
        sizes = np.asarray([each.size for each in self.bytes])[which]
        wrong = (which < 0) | (offsets + width > sizes)
        if wrong.any():
            first = wrong.argmax()
            name = self.names[which[first]] if which[first] >= 0 else "no array"
            raise AccessError(
                f"thread {threads[first]}: {width} bytes at offset {offsets[first]} of {name} ({sizes[first]} bytes)"
            )
        if (at % width).any():
            first = (at % width != 0).argmax()
            raise AccessError(f"thread {threads[first]}: address {at[first]:#x} is not a multiple of {width} bytes")
        for index in np.unique(which):
            chosen = which == index
            yield index, threads[chosen], offsets[chosen]
