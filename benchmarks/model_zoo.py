"""Can the models that people train be captured, cut and run as they are, and as fast?

`python -m benchmarks.model_zoo [--json] [--quick] [--section NAME …] [--only MODEL …]`
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
import warnings
from typing import Any

from benchmarks.common import Goal, report

SECTIONS = ("architectures", "evaluation", "odd", "overhead", "load")
ALL_SECTIONS = (*SECTIONS, "compiled")
"""Each is a module of `benchmarks.sections` with `run(only, quick) -> (rows, goals)`.

The last takes minutes and needs a C++ compiler: it runs only where it is named.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the sections; returns 0 where every goal holds, 1 where one is missed, 2 where it cannot run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.model_zoo", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object for machines")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, never for a claim")
    parser.add_argument("--section", nargs="+", choices=ALL_SECTIONS, default=SECTIONS)
    parser.add_argument("--only", nargs="+", default=(), metavar="MODEL", help="only these models")
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("transformers") is None:
        print("transformers is missing: pip install -c constraints.txt '.[bench]'", file=sys.stderr)
        return 2
    warnings.filterwarnings("ignore")
    results: dict[str, Any] = {}
    goals: list[Goal] = []
    for name in options.section:
        section = importlib.import_module(f"benchmarks.sections.{name}")
        results[name], reached = section.run(tuple(options.only), options.quick)
        goals += reached
    return report("model_zoo", results, goals, options.json)


if __name__ == "__main__":
    sys.exit(main())
