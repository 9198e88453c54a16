"""Check the formal model of the election: `make model-check`.

Spin searches every state of `docs/design/election.pml`. Then it does so with each of the mistakes that
the model knows, and has to find that it breaks a promise: a check that cannot fail says nothing.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODEL = Path(__file__).resolve().parents[1] / "docs" / "design" / "election.pml"
MISTAKES = ("ACT_FIRST", "PUBLISH_FIRST", "NO_FENCE", "FORGETFUL")
MEMORY_MB, DEPTH = 8000, 2_000_000
NEEDED = ("spin", "gcc")


def main() -> int:
    """Entry point; returns the exit status: 0 as promised, 1 not, 2 where a tool is missing."""
    missing = [tool for tool in NEEDED if shutil.which(tool) is None]
    if missing:
        print(
            f"model-check needs {' and '.join(missing)}: apt-get install {' '.join(missing)}", file=sys.stderr
        )
        return 2
    wrong = []
    for mistake in ("", *MISTAKES):
        begin_s = time.monotonic()
        errors, states = search(mistake)
        expected = "must hold" if not mistake else "must be found"
        holds = (errors == 0) if not mistake else (errors > 0)
        print(
            f"{mistake or 'the rules':14} {expected:14} {'ok' if holds else 'WRONG':6} "
            f"{states} states, {time.monotonic() - begin_s:.0f} s",
            flush=True,
        )
        if not holds:
            wrong.append(mistake or "the rules")
    return 1 if wrong else 0


def search(mistake: str) -> tuple[int, int]:
    """Every state of the model; returns how many errors were found, and in how many states.

    Raises:
        RuntimeError: the search was cut short, so it says nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        defined = [f"-D{mistake}"] if mistake else []
        _run(["spin", "-a", *defined, str(MODEL)], folder)
        safety = ["-DSAFETY", "-DCOLLAPSE", f"-DMEMLIM={MEMORY_MB}"]
        _run(["gcc", "-O2", "-w", *safety, "-o", "pan", "pan.c"], folder)
        out = _run(["./pan", f"-m{DEPTH}"], folder)
    errors = re.search(r"errors: (\d+)", out)
    states = re.search(r"([\d.e+]+) states, stored", out)
    cut_short = "Search not completed" in out or "max search depth too small" in out
    if errors is None or states is None or (cut_short and errors[1] == "0"):
        raise RuntimeError(f"the search says nothing:\n{out[-2000:]}")
    return int(errors[1]), int(float(states[1]))


def _run(command: list[str], folder: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
