"""What members of a round tell each other, as frames: chunks and receipts, what one holds, its result."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ravnest_p2p.core.errors import ChunkMismatchError
from ravnest_p2p.core.rings import DIGEST_BYTES, Formed, Kind, Result, Send, Showed
from ravnest_p2p.network.frames import Buffer, Frame
from ravnest_p2p.training import averaging
from ravnest_p2p.training.means import Values

FORMED, RESULT = "formed", "result"

Message = Formed | Result | Send[Any]

BEGUN: Message = Send(0, None, None, None, (), ())
"""What each tells all others first: nothing, but that it has come to the round."""


def packed(number: int, message: Message, chunks: int) -> tuple[dict[str, Any], list[Buffer]]:
    """The header and payload of a message of round `number`."""
    if isinstance(message, Result):
        return {"r": number, "k": RESULT, "n": list(message.showed)}, [b"".join(message.digests)]
    header: dict[str, Any] = {"r": number, "f": message.formation}
    if isinstance(message, Formed):
        bits = [[n in its for n in range(chunks)] for its in message[1:]]
        return header | {"k": FORMED}, [np.packbits(bits, axis=1).tobytes()]
    if message.kind is not None:
        header |= {"k": message.kind.value, "c": message.chunk}
    if message.held:
        header["h"] = message.held
    if message.settled:
        header["s"] = message.settled
    return header, [] if message.payload is None else [averaging.view(message.payload)]


def unpacked(frame: Frame, number: int, values: Values) -> Message:
    """What a member says in round `number`.

    Raises:
        ChunkMismatchError: the frame is none of this round.
    """
    header = frame.header
    if header.get("r") != number:
        raise ChunkMismatchError(f"a frame of round {header.get('r')!r:.40} came in round {number}")
    kind, formation = header.get("k"), header.get("f")
    if kind == RESULT:
        whole = bytes(frame.payload)
        digests = tuple(whole[n : n + DIGEST_BYTES] for n in range(0, len(whole), DIGEST_BYTES))
        return Result(digests, _showed(header.get("n")))
    if type(formation) is not int:
        raise ChunkMismatchError(f"a frame of formation {formation!r:.40}")
    return _formed(frame, formation, values.chunks) if kind == FORMED else _sent(frame, formation, values)


def _formed(frame: Frame, formation: int, chunks: int) -> Formed:
    row_bytes = -(-chunks // 8)
    if len(frame.payload) != 2 * row_bytes:
        raise ChunkMismatchError(f"{len(frame.payload)} bytes say which of {chunks} chunks a member holds")
    bits = np.unpackbits(np.frombuffer(frame.payload, np.uint8).reshape(2, row_bytes), axis=1)
    held, kept = (frozenset(np.flatnonzero(row).tolist()) for row in bits)
    return Formed(formation, held, kept)


def _showed(told: Any) -> Showed:
    whole = isinstance(told, list) and len(told) == len(Showed._fields)
    if not whole or not all(isinstance(one, float) and 0.0 <= one < math.inf for one in told):
        raise ChunkMismatchError(f"a result that shows {told!r:.40}")
    return Showed(*told)


def _sent(frame: Frame, formation: int, values: Values) -> Send[Any]:
    header = frame.header
    chunk, held, settled = header.get("c"), header.get("h", []), header.get("s", [])
    lists = isinstance(held, list) and isinstance(settled, list)
    if not lists or not all(type(one) is int for one in (*held, *settled)):
        raise ChunkMismatchError("a frame whose receipts are none")
    if "k" not in header:
        return Send(formation, None, None, None, tuple(held), tuple(settled))
    if type(chunk) is not int or header["k"] not in (Kind.SUM.value, Kind.MEAN.value):
        raise ChunkMismatchError(f"a frame of chunk {chunk!r:.40} that is neither a sum nor a mean")
    payload = values.received(chunk, frame.payload)
    return Send(formation, Kind(header["k"]), chunk, payload, tuple(held), tuple(settled))
