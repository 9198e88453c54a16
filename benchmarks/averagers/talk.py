"""How a benchmark talks to the members that it starts: lines of JSON, in and out."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any


def say(**what: Any) -> None:
    """One line to the benchmark."""
    print(json.dumps(what), flush=True)


def hear() -> dict[str, Any]:
    """The next line from it; {} at the end."""
    line = sys.stdin.readline()
    found: dict[str, Any] = json.loads(line) if line else {}
    return found


async def hear_aside() -> dict[str, Any]:
    """`hear`, while the event loop goes on."""
    return await asyncio.get_running_loop().run_in_executor(None, hear)
