"""Lets py-libp2p and hivemind live in one process.

Problem: both register protobuf messages named `crypto.pb…` in the process's one descriptor pool, so
    whichever is imported second fails with "duplicate symbol". A notebook that uses both, or a program
    that runs a peer and asks a swarm, would not start. Solution: py-libp2p's generated modules are
    imported while the default pool is another.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from google.protobuf import descriptor_pool


@contextmanager
def own_pool() -> Iterator[None]:
    """Generated protobuf modules that are imported inside register their messages in a pool of their own."""
    default, pool = descriptor_pool.Default, descriptor_pool.DescriptorPool()
    descriptor_pool.Default = lambda: pool
    try:
        yield
    finally:
        descriptor_pool.Default = default
