"""`ravnest plan`: which peers should form which clusters, for a problem in a file; asks no swarm."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ravnest_p2p.core.planning.layout import Cluster, Layout
    from ravnest_p2p.core.planning.problem import Problem

BUDGETS = ("quick", "normal", "thorough")

MAX_ITEMS = 5_000_000
"""Of a file's JSON."""

EXAMPLES = """examples:
  ravnest plan instance.json --out plan.json --explain
  ravnest plan instance.json --out plan.json --budget thorough --seed 7 --json
  ravnest plan instance.json --start yesterday.json --svg plan.svg

The same instance, seed and budget give the same plan on every machine. docs/planning.md describes both files
and what a plan is judged by. The first plan on a machine takes half a minute longer: the search is compiled.
"""


def add_to(commands: Any) -> None:
    """Register the command."""
    command = commands.add_parser(
        "plan",
        help="group peers into clusters, from a file",
        description="Find which peers should form which clusters for a model; asks no swarm.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("file", metavar="INSTANCE.json", help="peers, lines and model")
    command.add_argument("--out", metavar="PLAN.json", help="write the plan into this file")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of the search (default: 0)")
    command.add_argument(
        "--budget", choices=BUDGETS, default="normal", help="how long to search (default: normal)"
    )
    command.add_argument("--start", metavar="PLAN.json", help="an earlier plan to begin with")
    command.add_argument(
        "--explain", action="store_true", help="what limits each cluster, and what would make it faster"
    )
    command.add_argument("--svg", metavar="FILE", help="draw the plan into this file")
    command.add_argument("--json", action="store_true", help="answer in JSON")
    command.set_defaults(work=None)


def run(options: argparse.Namespace) -> int:
    """Do what was asked.

    Raises:
        ConfigError: a file that cannot be read or written.
        PlanningProblemError: a file that is malformed, naming the field.
        PlanningError: no cluster of these peers can train the model.
    """
    from ravnest_p2p.cli import output
    from ravnest_p2p.cli.planning_view import as_dict, print_plan
    from ravnest_p2p.core.errors import PlanError, PlanningError
    from ravnest_p2p.core.planning.instance import parse_problem
    from ravnest_p2p.core.planning.layout import parse_layout
    from ravnest_p2p.core.planning.objective import score

    problem = parse_problem(_read(options.file))
    start = parse_layout(_read(options.start)).clusters if options.start else ()
    try:
        layout = _solved(problem, options, start)
    except PlanError as error:
        raise PlanningError(f"{options.file}: {error}") from None
    if options.out:
        output.write_text(options.out, json.dumps(layout.to_json()))
    if options.svg:
        from ravnest_p2p.cli.planning_svg import svg_of

        output.write_text(options.svg, svg_of(problem, layout))
    judged, why = score(problem, layout), None
    if options.explain:
        from ravnest_p2p.core.planning.explain import explain

        why = explain(problem, layout)
    if options.json:
        plan = {} if options.out else {"plan": layout.to_json()}
        output.print_json({**as_dict(problem, layout, judged, why), **plan})
    else:
        print_plan(problem, layout, judged, why)
    return 0


def _solved(problem: Problem, options: argparse.Namespace, start: tuple[Cluster, ...]) -> Layout:
    with _Progress(quiet=options.json) as say:
        say("compiling the search, once on each machine …", 0.0)
        from ravnest_p2p.core.planning.search.solve import solve

        return solve(problem, seed=options.seed, budget=options.budget, start=start, progress=say)


class _Progress:
    """One line that says what was tried last; on a terminal only."""

    def __init__(self, *, quiet: bool) -> None:
        self._shown = not quiet and sys.stderr.isatty()

    def __enter__(self) -> Callable[[str, float], None]:
        return self._say

    def __exit__(self, *_: object) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def _say(self, what: str, best: float) -> None:
        if self._shown:
            so_far = f", best so far {best:.4g} samples/s" if best else ""
            print(f"\r\x1b[K{what}{so_far}", end="", file=sys.stderr, flush=True)


def _read(name: str) -> Any:
    from ravnest_p2p.core.errors import ConfigError, PlanningProblemError
    from ravnest_p2p.core.strict_json import strict_json

    path = Path(name).expanduser()
    try:
        return strict_json(path.read_bytes(), MAX_ITEMS)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise PlanningProblemError(f"{path} is no JSON that can be used: {error}") from None
