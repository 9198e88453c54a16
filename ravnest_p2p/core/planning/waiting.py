"""Why a job waits, in words that say what to do.

Problem: "not enough resources" helps nobody. Solution: name the need, what is there, what is missing, and the
two ways out: lend more, or ask for less.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

from ravnest_p2p.core.capability import MAX_FLOPS, MAX_MEMORY_BYTES
from ravnest_p2p.core.planning.cost import need_of, planning_table, takes_part
from ravnest_p2p.core.planning.cuts import MIN_FLOPS
from ravnest_p2p.core.planning.resume import missing_layers
from ravnest_p2p.core.types import Capability, JobSpec, PeerId, Piece
from ravnest_p2p.core.wording import bytes_text, peer_text, peers_text

MAX_LAYERS = 4096
MAX_COUNT = 1_000_000_000

_SHOWN = 6


def malformed(spec: JobSpec) -> str:
    """What makes a manifest unfit for planning; empty for a sound one."""
    counts = (spec.stages, spec.clusters, spec.staleness_bound, spec.total_batches)
    sizes = (spec.microbatches_per_update, spec.updates_per_round, spec.microbatch_size)
    if not 0 < len(spec.layers) <= MAX_LAYERS:
        return f"its model has {len(spec.layers)} layers, not 1 to {MAX_LAYERS}: submit it anew"
    if any(not 0 <= n <= MAX_COUNT for n in counts) or any(not 1 <= n <= MAX_COUNT for n in sizes):
        return (
            f"a number of its manifest is not in [0, {MAX_COUNT}], or 0 where 1 is the least: submit it anew"
        )
    for n, layer in enumerate(spec.layers):
        sizes = (layer.param_bytes, layer.activation_bytes, layer.out_bytes)
        if not 0 <= layer.flops <= MAX_FLOPS or any(not 0 <= size <= MAX_MEMORY_BYTES for size in sizes):
            return f"the cost of its layer {n} is no sane number: submit it anew"
    return ""


def for_peers(
    spec: JobSpec,
    free: Mapping[PeerId, Capability],
    online: Mapping[PeerId, Capability],
    memory_scale: float = 1.0,
) -> str:
    """Why these free peers do not make the clusters asked for; who lends nothing does not count."""
    free, online = _lending(free), _lending(online)
    unwilling = {peer for peer, capability in free.items() if not takes_part(spec, capability)}
    if not unwilling:
        return _short(spec, free, online, memory_scale)
    free, online = _without(free, unwilling), _without(online, unwilling)
    flops = sum(layer.flops for layer in spec.layers)
    return (
        f"{_short(spec, free, online, memory_scale)}; {_count(len(unwilling), 'more peer')} would be "
        f"free, but not for micro-batches of {flops:.2g} operations: submit with smaller ones, or have their "
        "owners raise --microbatch-flops"
    )


def _short(
    spec: JobSpec, free: Mapping[PeerId, Capability], online: Mapping[PeerId, Capability], memory_scale: float
) -> str:
    """What is missing beside these peers."""
    layers = len(spec.layers)
    if spec.stages > layers:
        return (
            f"asks for {spec.stages} stages, but the model has {layers} layers to cut between: "
            f"submit with stages={layers} or fewer"
        )
    stages = spec.stages or min(max(len(free), 1), layers)
    clusters = spec.clusters or 1
    wanted = stages * clusters
    each_bytes = smallest_peer_bytes(spec, stages, memory_scale)
    shape = f"{_count(clusters, 'cluster')} × {_count(stages, 'stage')} = {_count(wanted, 'peer')}"
    able = [c for c in free.values() if c.memory_bytes >= each_bytes and c.flops >= MIN_FLOPS]
    need = f"needs {shape} with about {bytes_text(each_bytes)} each"
    if memory_scale > 1.0:
        need += f" (measured: {memory_scale:.2g} times the estimate)"
    there = _there(free, online)
    if len(free) < wanted:
        return f"{need}; {there}: {_more(wanted - len(free), spec)}"
    if len(able) < wanted:
        advice = "" if spec.stages and spec.stages == layers else ", or submit with more stages"
        return (
            f"{need}; {there}, {len(able)} of them with enough memory: "
            f"start {_count(wanted - len(able), 'ravnestd')} with more memory{advice}"
        )
    return f"{need}; {there}, but no order of them fits all stages: {_more(1, spec)}"


def for_pieces(spec: JobSpec, pieces: Iterable[Piece], online: Iterable[PeerId]) -> str:
    """Why no saved round can be restored."""
    known = list(pieces)
    newest = max((piece.batches_done for piece in known), default=0)
    lost, absent = missing_layers(known, frozenset(online), len(spec.layers), newest)
    what = (
        f"layers {_ranges(lost)} of the state saved at batch {newest}" if lost and newest else "saved state"
    )
    where = f"only {peers_text(absent)} hold it" if absent else "no peer that is online holds it"
    return f"{what} is missing: {where}; bring such a peer back online, or cancel the job and submit it anew"


def with_fewer(spec: JobSpec, clusters: int) -> str:
    """What a running job should say when it got fewer clusters than it asked for; empty if it did not."""
    if clusters >= spec.clusters:
        return ""
    return f"goes on with the remaining peers: {clusters} of {_count(spec.clusters, 'cluster')}"


def smallest_peer_bytes(spec: JobSpec, stages: int, memory_scale: float = 1.0) -> int:
    """Memory with which `stages` equal peers can hold the model: the best cut's largest need."""
    table = planning_table(spec, memory_scale)
    cuts, need = table.cuts, need_of(spec, table, stages)
    best: list[int | None] = [0] + [None] * (len(cuts) - 1)
    for stage in range(stages):
        before, best = best, [None] * len(cuts)
        for hi in range(stage + 1, len(cuts)):
            for lo in range(hi - 1, stage - 1, -1):
                lowest, so_far = before[lo], best[hi]
                here = need(stage, cuts[lo], cuts[hi])
                if so_far is not None and here >= so_far:
                    break
                if lowest is not None and (so_far is None or max(lowest, here) < so_far):
                    best[hi] = max(lowest, here)
    return best[-1] or 0


def _lending(peers: Mapping[PeerId, Capability]) -> dict[PeerId, Capability]:
    return {peer: capability for peer, capability in peers.items() if capability.memory_bytes}


def _without(peers: Mapping[PeerId, Capability], left_out: Set[PeerId]) -> dict[PeerId, Capability]:
    return {peer: capability for peer, capability in peers.items() if peer not in left_out}


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _there(free: Mapping[PeerId, Capability], online: Mapping[PeerId, Capability]) -> str:
    busy = len(online) - len(free)
    state = f"free, {busy} of {len(online)} online train other jobs" if busy else "online"
    if not free:
        return f"none is {state}"
    shown = [f"{peer_text(p)} {bytes_text(free[p].memory_bytes)}" for p in sorted(free)[:_SHOWN]]
    rest = f" and {len(free) - _SHOWN} more" if len(free) > _SHOWN else ""
    return f"{len(free)} {'is' if len(free) == 1 else 'are'} {state} ({', '.join(shown)}{rest})"


def _more(count: int, spec: JobSpec) -> str:
    less = ", or submit with clusters=1" if spec.clusters > 1 else ""
    if not less and spec.stages > 1:
        less = ", or submit with fewer stages"
    return f"start {count} more ravnestd{less}"


def _ranges(numbers: list[int]) -> str:
    """Such as "0-3, 5"."""
    parts: list[list[int]] = []
    for n in numbers:
        if parts and parts[-1][-1] == n - 1:
            parts[-1] = [parts[-1][0], n]
        else:
            parts.append([n])
    return ", ".join("-".join(str(n) for n in part) for part in parts)
