"""Do all members hold the same result, and if not, between whom does it change?

Problem: whoever hands on a mean may alter it, and memory may fail; all members have to find out before they
go on from different parameters. Solution: each member tells all others a digest of what it ended with, one
row for each way (`ways`), and everybody compares.

That most agree proves nothing of the rest. A liar on a ring who alters what it hands on, and tells the digest
of what it was given, makes the honest members behind it differ from those before it, and there may be few or
many of either. But each member should hold what the one before it on the way holds. So wherever two
neighbours on a way differ, one of these two is at fault: it altered what it gave, or what it got, or lies
about what it has. Where one member is an end of all such pairs and no other is, it is named alone; else the
pair is, and with two members always both. Members that work together can have an honest one named between
them, so a name is a reason to end a round and to look, not a proof.

Digests are comparable however a round went. Ways are known only where nobody died in it; otherwise everybody
who took part may be at fault.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from ravnest_p2p.core.rings.ways import Ways

DIGEST_BYTES = 16
"""Of a row; to find other values with a given one takes 2^128 tries."""

MOST_ROWS = 256
"""Where there are more ways, all chunks are one row: a frame for each other member stays small."""

Digests = tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Dispute:
    """Members ended with different results.

    Attributes:
        differ: ranks whose result is not that of more than half; all where no result is.
        suspects: if one member is at fault, it is one of these ranks.
    """

    differ: tuple[int, ...]
    suspects: tuple[int, ...]


def rows(ways: Ways) -> int:
    """Rows of everybody's digests; chunk n belongs to row n modulo that."""
    return ways.count if ways.count <= MOST_ROWS else 1


def dispute(results: Mapping[int, Digests], ways: Ways | None) -> Dispute | None:
    """What members told; None where all agree.

    Args:
        results: by rank, of all that live.
        ways: that all chunks went, chunk n way n modulo their count; None where members died meanwhile.
    """
    most, voices = Counter(results.values()).most_common(1)[0]
    if voices == len(results):
        return None
    majority = 2 * voices > len(results)
    differ = [rank for rank, result in results.items() if not majority or result != most]
    pairs = [] if ways is None or rows(ways) != ways.count else _pairs(results, ways)
    suspects = set[int].intersection(*pairs) or set[int].union(*pairs) if pairs else set(results)
    return Dispute(tuple(sorted(differ)), tuple(sorted(suspects)))


def _pairs(results: Mapping[int, Digests], ways: Ways) -> list[set[int]]:
    """Neighbours on a way whose rows of it differ."""
    found = []
    for way in range(ways.count):
        for place, result in results.items():
            source = ways.hop(way, place).source
            if source is not None and results[source][way] != result[way]:
                found.append({source, place})
    return found
