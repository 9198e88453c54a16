"""Cut a model into stages: at given layers, into equal parts, or for given peers.

`split` gives stages that can be used, `split_program` the same as data, which is all that planning needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from ravnest_p2p.core.errors import CaptureError
from ravnest_p2p.core.types import Capability, LayerCost
from ravnest_p2p.model.compute import StageComputation
from ravnest_p2p.model.eval_stages import eval_stages
from ravnest_p2p.model.fitting import cuts_of, equal_peers, fit
from ravnest_p2p.model.mixed import MixedComputation
from ravnest_p2p.model.package import Package
from ravnest_p2p.model.program import Program
from ravnest_p2p.model.requirements import Requirements, Terms
from ravnest_p2p.model.stage import Stage
from ravnest_p2p.model.stage_programs import Excerpt, StageProgram, stage_program


def split(
    package: Package,
    cuts: Sequence[int] | None = None,
    *,
    stages: int | None = None,
    peers: Sequence[Capability] | None = None,
    terms: Terms | None = None,
    layers: Sequence[LayerCost] | None = None,
) -> list[Stage]:
    """All stages of a model with their weights, each with `forward`, `backward` and `evaluate`.

    The arguments are those of `split_program`. They compute in the precision of the terms, and evaluate in
    float32. Together they hold a second copy of what is trained.

    Raises:
        CaptureError: the package has no weights.
        PackageError, PlanningError, ValueError: as of `split_program`.
    """
    programs = split_program(package.program, cuts, stages=stages, peers=peers, terms=terms, layers=layers)
    if not package.has_weights:
        raise CaptureError("the model was captured without weights; split_program() cuts its program alone")
    evaluations: Sequence[Excerpt | None] = [None] * len(programs)
    if package.evaluation is not None:
        evaluations = eval_stages(package.evaluation, programs)
    kind = MixedComputation if terms is not None and terms.precision == "bf16" else StageComputation
    return [
        Stage(kind(program), package.weights, evaluation)
        for program, evaluation in zip(programs, evaluations, strict=True)
    ]


def split_program(
    program: Program,
    cuts: Sequence[int] | None = None,
    *,
    stages: int | None = None,
    peers: Sequence[Capability] | None = None,
    terms: Terms | None = None,
    layers: Sequence[LayerCost] | None = None,
) -> list[StageProgram]:
    """All stages of a program as data, cut at given layers, into equal parts, or for given peers.

    Exactly one of `cuts`, `stages` and `peers` is given. The latter two cut as the swarm's planner does: the
    slowest stage as fast as can be, then the fewest bytes over the cuts.

    Args:
        cuts: stage s starts at layer cuts[s-1]; ascending, each in (0, number of layers).
        stages: that many for equal peers, whose memory and links are no bound.
        peers: one stage for each, in this order; their speed, link and memory are respected.
        terms: optimizer, precision and the rest that memory depends on.
        layers: costs to use instead of the program's own, such as `measured_layers` gives.
    Raises:
        PackageError: the cuts do not ascend, or the program has no such layers.
        PlanningError: too few layers for so many stages, or the peers' memory does not suffice.
        ValueError: not exactly one way to cut is given.
    """
    if sum(way is not None for way in (cuts, stages, peers)) != 1:
        raise ValueError("give exactly one of cuts, stages and peers")
    if cuts is None:
        chosen = equal_peers(stages) if stages is not None else list(peers or ())
        cuts = cuts_of(fit(Requirements(program, terms, layers), chosen))
    edges = [0, *cuts, len(program.layer_bounds)]
    return [stage_program(program, lo, hi) for lo, hi in pairwise(edges)]
