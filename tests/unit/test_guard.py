"""A worker gets the memory that is lent, and what torch takes beside it, and no more."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import ravnest_p2p
from ravnest_p2p.daemon.worker import guard

LENT = 10**8
CHILD = """
import json, mmap, sys
import torch
from ravnest_p2p.daemon.worker import guard

PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS

def outcome(attempt):
    try:
        attempt()
    except (MemoryError, RuntimeError) as error:
        return type(error).__name__
    return "done"

def fill(count):
    return [torch.empty(lent // 8, dtype=torch.uint8) for _ in range(count)]

lent = int(sys.argv[1])
beyond = lent + guard.DATA_OVERHEAD_BYTES
guard.limit_resources(lent, 10**8)
print(json.dumps({
    "what is lent": outcome(lambda: torch.empty(lent, dtype=torch.uint8)),
    "one tensor too large": outcome(lambda: torch.empty(beyond, dtype=torch.uint8)),
    "tensors too many": outcome(lambda: fill(8 * beyond // lent + 1)),
    "objects of Python": outcome(lambda: bytearray(beyond)),
    "after that, what is lent": outcome(lambda: torch.zeros(lent, dtype=torch.uint8)),
    "what is reserved and not used": outcome(lambda: mmap.mmap(-1, 1 << 40, prot=0, flags=PRIVATE)),
}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="caps on memory itself are linux's")
def test_more_than_is_lent_is_refused() -> None:
    assert guard.DATA_OVERHEAD_BYTES > 2 * 10**9
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(LENT)],
        cwd=Path(ravnest_p2p.__path__[0]).parent,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "what is lent": "done",
        "one tensor too large": "RuntimeError",
        "tensors too many": "RuntimeError",
        "objects of Python": "MemoryError",
        "after that, what is lent": "done",
        "what is reserved and not used": "done",
    }
