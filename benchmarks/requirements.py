"""Are requirements predicted rightly, and are models cut well? `python -m benchmarks.requirements --json`.

Sections: `balance` (times of the stages), `memory` (tensor bytes and resident size), `scale` (models that are
too large for this machine).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks import requirements_balance, requirements_memory, requirements_scale
from benchmarks.common import Goal, report

SECTIONS = {
    "balance": requirements_balance.section,
    "memory": requirements_memory.section,
    "scale": requirements_scale.section,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.requirements", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object for machines")
    parser.add_argument("--quick", action="store_true", help="fewer models and rounds; never for a claim")
    parser.add_argument("--section", choices=SECTIONS, help="only this one (default: all)")
    options = parser.parse_args(arguments)
    results: dict[str, Any] = {}
    goals: list[Goal] = []
    for name in [options.section] if options.section else SECTIONS:
        found, wanted = SECTIONS[name](options.quick)
        nested = isinstance(next(iter(next(iter(found.values())).values())), dict)
        results |= {f"{name}: {key}": rows for key, rows in found.items()} if nested else {name: found}
        goals += wanted
    return report("requirements", results, goals, options.json)


if __name__ == "__main__":
    sys.exit(main())
