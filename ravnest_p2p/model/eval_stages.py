"""Put an evaluation on the stages that train its model, so that each evaluates with what it holds.

Problem: the evaluation is another graph than the train step, yet its weights are where training put them.
Solution: the evaluation is cut as the train step is, between two nodes. A cut may lie no later than the first
use of what a later stage owns; of the places from the last first use of what earlier stages own, the one is
taken where the fewest bytes cross. A tensor that its owner's stage is done with, or that comes too early for
its owner (both of them rare: evaluation mostly goes the way of training), is carried forward like a tied one,
so there always is a cut.
"""

from __future__ import annotations

from collections.abc import Sequence

from ravnest_p2p.model.evaluation import EvalProgram
from ravnest_p2p.model.stage_programs import Excerpt, StageProgram, excerpt


def eval_stages(evaluation: EvalProgram, stages: Sequence[StageProgram]) -> list[Excerpt]:
    """Each stage's share of the evaluation, in order; the last sends the loss and the outputs.

    Args:
        stages: all of the train step, in order.
    """
    owners = _owners(evaluation, stages)
    count = len(evaluation.nodes)
    places = _places(evaluation, owners, len(stages) - 1)
    crossing = [_crossing(evaluation, owners, cut, place) for cut, place in enumerate(places)]
    edges = zip([0, *places], [*places, count], [(), *crossing], [*crossing, evaluation.results], strict=True)
    return [excerpt(evaluation, *edge) for edge in edges]


def _owners(evaluation: EvalProgram, stages: Sequence[StageProgram]) -> dict[int, int]:
    """Stage of each slot of `params`."""
    held = {name: n for n, stage in enumerate(stages) for name in (*stage.params, *stage.mutable_buffers)}
    # Training may declare a parameter without using it; such a one is nobody's, and anybody may have it.
    return {slot: held.get(evaluation.leaves[slot].name, 0) for slot in evaluation.param_slots}


def _places(evaluation: EvalProgram, owners: dict[int, int], cuts: int) -> list[int]:
    """Where each cut lies: before node p."""
    first, count = evaluation.cut_map.first_use, len(evaluation.nodes)
    places: list[int] = []
    for cut in range(cuts):
        latest = min((first[slot] for slot, owner in owners.items() if owner > cut), default=count)
        begun = (first[slot] + 1 for slot, owner in owners.items() if owner <= cut and first[slot] < count)
        earliest = min(latest, max(places[-1] if places else 0, *begun, 0))
        places.append(min(range(earliest, latest + 1), key=lambda p: _price(evaluation, owners, cut, p)))
    return places


def _price(evaluation: EvalProgram, owners: dict[int, int], cut: int, place: int) -> tuple[int, int, int]:
    """Tensors that would cross out of order in memory, bytes that would cross, and early before late."""
    analysis = evaluation.analysis
    crossing = _crossing(evaluation, owners, cut, place)
    scattered = sum(not analysis.contiguous[slot] for slot in crossing)
    return scattered, sum(analysis.specs[slot].nbytes for slot in crossing), place


def _crossing(evaluation: EvalProgram, owners: dict[int, int], cut: int, place: int) -> tuple[int, ...]:
    """Slots that are sent over a cut at that place, ascending."""
    cuts, leaves = evaluation.cut_map, len(evaluation.leaves)
    carried = [slot for slot, owner in owners.items() if owner <= cut and cuts.last_use[slot] >= place]
    return (*carried, *(slot for slot in cuts.crossing(place) if slot >= leaves))
