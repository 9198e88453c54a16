"""From which saved round a job goes on.

Problem: the pieces of a round are spread over peers, some of them are gone, and clusters cut the model
differently. Solution: take the newest round whose pieces, counting only those with a live holder, cover every
layer; within it prefer pieces of one version, and the fewest pieces.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from ravnest_p2p.core.types import PeerId, Piece


def resume_point(
    pieces: Iterable[Piece], live_peers: Collection[PeerId], layers: int, *, not_before: int = 0
) -> tuple[int, int, tuple[Piece, ...]] | None:
    """The newest round that live peers can restore in full.

    Args:
        pieces: whatever peers reported, in any order; malformed ones are passed over.
        live_peers: only what they hold counts.
        layers: L of the job.
        not_before: rounds with fewer batches done do not count.
    Returns:
        (batches_done, version, pieces in order of layers, with their live holders only), or None.
    """
    live = frozenset(live_peers)
    held = [
        replace(piece, holders=holders)
        for piece in _well_formed(pieces, layers)
        if (holders := tuple(sorted(live.intersection(piece.holders))))
    ]
    for batches_done in sorted({piece.batches_done for piece in held}, reverse=True):
        if batches_done < not_before:
            break
        of_round = [piece for piece in held if piece.batches_done == batches_done]
        chosen = _cover_of_one_version(of_round, layers) or _cover(of_round, layers)
        if chosen:
            return batches_done, max(piece.version for piece in chosen), chosen
    return None


def ever_saved(pieces: Iterable[Piece], layers: int) -> bool:
    """Whether a full round was saved at some time, by whomever, so that starting anew would lose training.

    True too where pieces of two rounds are known: no stage gets to its second round before every stage of its
    cluster has saved the first.
    """
    known = _well_formed(pieces, layers)
    rounds = {piece.batches_done for piece in known}
    return len(rounds) > 1 or any(
        _cover([piece for piece in known if piece.batches_done == done], layers) for done in rounds
    )


def missing_layers(
    pieces: Iterable[Piece], live_peers: Collection[PeerId], layers: int, batches_done: int
) -> tuple[list[int], list[PeerId]]:
    """Layers of a round that no live peer holds, and the absent peers that hold them."""
    of_round = [piece for piece in _well_formed(pieces, layers) if piece.batches_done == batches_done]
    live = frozenset(live_peers)
    present = {n for p in of_round if live.intersection(p.holders) for n in range(p.lo, p.hi)}
    lost = [n for n in range(layers) if n not in present]
    absent = {holder for p in of_round if not present.issuperset(range(p.lo, p.hi)) for holder in p.holders}
    return lost, sorted(absent - live)


def _well_formed(pieces: Iterable[Piece], layers: int) -> list[Piece]:
    return [
        p
        for p in pieces
        if 0 <= p.lo < p.hi <= layers and p.batches_done > 0 and p.version >= 0 and p.holders
    ]


def _cover_of_one_version(pieces: Sequence[Piece], layers: int) -> tuple[Piece, ...]:
    for version in sorted({piece.version for piece in pieces}, reverse=True):
        chosen = _cover([piece for piece in pieces if piece.version == version], layers)
        if chosen:
            return chosen
    return ()


def _cover(pieces: Sequence[Piece], layers: int) -> tuple[Piece, ...]:
    """Fewest pieces that cover [0, layers), of several the one with most holders; empty where none do."""
    chosen: list[Piece] = []
    at = 0
    while at < layers:
        options = [piece for piece in pieces if piece.lo <= at < piece.hi]
        if not options:
            return ()
        chosen.append(
            min(options, key=lambda p: (-p.hi, -len(p.holders), -p.version, p.lo, p.blob, p.holders))
        )
        at = chosen[-1].hi
    return tuple(chosen)
