"""Hosts that are network namespaces, joined by whatever a benchmark's net makes of them.

`demand` says what this machine lacks for it before anything runs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
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
        OSError: iproute2 refused, in its own words.
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


def demand(parser: argparse.ArgumentParser, chosen: Collection[str], needing: Collection[str]) -> None:
    """End with status 2 where a chosen section needs namespaces and this machine has none."""
    lacking = missing()
    if lacking and set(chosen) & set(needing):
        parser.error(f"{lacking}, and so do the sections {', '.join(needing)} (see --section)")


def missing() -> str:
    """What namespaces need and this machine lacks; empty where they can be made."""
    if sys.platform != "linux":
        return "network namespaces need linux"
    if os.geteuid() != 0:
        return "network namespaces need root"
    absent = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    return f"network namespaces need {' and '.join(absent)}, of the package iproute2" if absent else ""


def ip(*arguments: str) -> None:
    run("ip", *arguments)


def run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip() or f'status {done.returncode}'}")


def delete(name: str) -> None:
    """A namespace and all that is in it, if it is there."""
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
