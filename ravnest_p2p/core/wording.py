"""How peers, sizes and times are written in the reasons that people read.

Problem: a reason that shows 52-character ids and raw byte counts is not read. Solution: the last characters
of an id (they differ, the first ones do not), decimal units, and a bounded length for text from other peers.
"""

from __future__ import annotations

from collections.abc import Iterable

from ravnest_p2p.core.types import PeerId

MAX_REASON_CHARS = 400


def peer_text(peer: PeerId) -> str:
    """Short form of a peer id: its last 8 characters."""
    return peer if len(peer) <= 10 else f"…{peer[-8:]}"


def peers_text(peers: Iterable[PeerId], limit: int = 6) -> str:
    """Short forms, sorted by id; those beyond `limit` are counted only."""
    ordered = sorted(peers)
    shown = ", ".join(peer_text(peer) for peer in ordered[:limit])
    rest = len(ordered) - limit
    return f"{shown} and {rest} more" if rest > 0 else shown


def bytes_text(count: int) -> str:
    """Decimal size, such as "310 MB"."""
    if count >= 10_000_000_000:
        return f"{count / 1e9:.0f} GB"
    if count >= 1_000_000_000:
        return f"{count / 1e9:.1f} GB"
    return f"{-(-count // 1_000_000)} MB"


def seconds_text(seconds: float) -> str:
    """Duration, such as "0.4 s" or "35 s"."""
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def bounded(reason: str) -> str:
    """The reason on one line, at most `MAX_REASON_CHARS` characters; unprintable characters become "?"."""
    head = reason[: MAX_REASON_CHARS + 1]
    line = "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in head).strip()
    return line if len(line) <= MAX_REASON_CHARS else line[: MAX_REASON_CHARS - 1] + "…"
