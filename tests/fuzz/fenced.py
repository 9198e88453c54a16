"""Tensors between unmapped pages: who reads or writes one element too far is killed, not lucky.

Problem: an operation that trusts a shape reads its neighbours in memory, and mostly nothing happens.
Solution: a tensor's bytes end (or start) where a page begins that nobody may touch.
"""

from __future__ import annotations

import ctypes
import mmap

import torch
from torch import Tensor

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_NO_ACCESS = 0


class Fence:
    """Makes such tensors; `close` takes their memory away, so nothing may use them after it."""

    def __init__(self) -> None:
        self._areas: list[tuple[int, int]] = []

    def enclose(self, tensor: Tensor, at_end: bool) -> Tensor:
        """A copy whose last byte (or first) lies beside an unmapped page."""
        size = tensor.numel() * tensor.element_size()
        if not size:
            return tensor.clone()
        inner = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        length = inner + 2 * mmap.PAGESIZE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        base = _LIBC.mmap(None, length, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
        if base in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), "mmap")
        self._areas.append((base, length))
        for page in (base, base + mmap.PAGESIZE + inner):
            _LIBC.mprotect(page, mmap.PAGESIZE, _NO_ACCESS)
        start = base + mmap.PAGESIZE + (inner - size if at_end else 0)
        memory = (ctypes.c_char * size).from_address(start)
        copy = torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape)
        return copy.copy_(tensor)

    def close(self) -> None:
        for base, length in self._areas:
            _LIBC.munmap(base, length)
        self._areas.clear()
