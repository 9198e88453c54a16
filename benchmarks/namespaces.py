"""Hosts that are network namespaces, joined by whatever a benchmark's net makes of them.

Needs linux, root and iproute2.
"""

from __future__ import annotations

import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import TypeVar

from ravnest_p2p.testing.local_swarm import Host

_Net = TypeVar("_Net", bound="Net")

TCP = ("congctl", "cubic")
"""As most systems have it, whatever this one prefers."""


class Net(ABC):
    """A context manager; its hosts are there inside.

    Args:
        names: of the hosts' namespaces.
        addresses: of the hosts. Public-looking, since go-libp2p believes no other; they lead nowhere else.
    Raises:
        OSError, subprocess.CalledProcessError: not root, or iproute2 refused.
    """

    def __init__(self, names: Sequence[str], addresses: Sequence[str]) -> None:
        self._names, self._addresses = list(names), list(addresses)

    @property
    def hosts(self) -> list[Host]:
        return [
            Host(address, ("ip", "netns", "exec", name))
            for name, address in zip(self._names, self._addresses, strict=True)
        ]

    def __enter__(self: _Net) -> _Net:
        try:
            for name in self._names:
                ip("netns", "add", name)
                ip("-n", name, "link", "set", "lo", "up")
            self._join()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    @abstractmethod
    def _join(self) -> None:
        """Give each host a device that leads to the others."""

    def _close(self) -> None:
        for name in self._names:
            delete(name)


def ip(*arguments: str) -> None:
    run("ip", *arguments)


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def delete(name: str) -> None:
    """A namespace and all that is in it, if it is there."""
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
