"""Small request-response calls between peers: a map goes out, a map or a named error comes back.

Problem: p2pd's unary calls carry bare bytes, wait for ever, report errors as Python text, and let one
remote start any number of handlers. Solution: bounded msgpack maps, a deadline on both sides, errors that
travel as a type name and one line of text (never a traceback), and a bound on the requests of one remote
at a time.

The wire: protocol `/ravnest/1/rpc/<name>`, the request one msgpack map; the reply byte 0 and a map, or
byte 1 and {"type", "text"}.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

from hivemind.p2p import P2P
from hivemind.p2p.p2p_daemon_bindings.datastructures import PeerID
from hivemind.p2p.p2p_daemon_bindings.utils import P2PDaemonError, P2PHandlerError
from hivemind.proto import p2pd_pb2

from ravnest_p2p.core import errors
from ravnest_p2p.core.errors import (
    BusyError,
    FrameError,
    FrameTooLargeError,
    LocalDaemonError,
    PeerUnreachableError,
    RavnestError,
    RemoteCallError,
    RemoteFault,
)
from ravnest_p2p.core.types import PeerId
from ravnest_p2p.network.frames import pack_map, unpack_map
from ravnest_p2p.network.p2pd_waits import bounded
from ravnest_p2p.network.streams import peer_id_of

logger = logging.getLogger(__name__)

Handler = Callable[[PeerId, dict[str, Any]], Awaitable[dict[str, Any]]]

MAX_BODY_BYTES = 1 << 20
_OK, _ERROR = b"\x00", b"\x01"
_PREFIX = "/ravnest/1/rpc/"
_MAX_TEXT = 500


class Rpc:
    """Calls and serves over one attachment to p2pd.

    Attributes:
        refused: requests that ended in an error, by the error's name.
    """

    def __init__(
        self, p2p: P2P, *, max_per_peer: int = 16, max_requests: int = 256, handler_timeout_s: float = 60.0
    ) -> None:
        self.refused: Counter[str] = Counter()
        self._p2p = p2p
        self._max_per_peer = max_per_peer
        self._max_requests = max_requests
        self._handler_timeout_s = handler_timeout_s
        self._running: Counter[str] = Counter()
        self._served: set[str] = set()

    async def serve(
        self, name: str, handler: Handler, max_bytes: int = MAX_BODY_BYTES, timeout_s: float = 10.0
    ) -> None:
        """Answers calls of `name` with what `handler(peer, body)` returns or raises.

        Args:
            max_bytes: largest request; longer ones are refused unread.
        Raises:
            LocalDaemonError: our p2pd does not take the name, for example because it is served already.
        """

        async def answer(data: bytes, remote: PeerID) -> bytes:
            return await self._answer(name, handler, max_bytes, data, PeerId(remote.to_base58()))

        registered = asyncio.ensure_future(self._p2p._client.add_unary_handler(_PREFIX + name, answer))
        done, _ = await asyncio.wait({registered}, timeout=timeout_s)
        if not done:
            registered.cancel()
            raise LocalDaemonError(f"p2pd did not register {name!r} within {timeout_s:.1f} s")
        error = registered.exception()
        if error is not None:
            raise LocalDaemonError(f"p2pd did not register {name!r}: {error}")
        self._served.add(name)

    async def close(self, timeout_s: float = 2.0) -> None:
        """Takes every served name back."""
        for name in list(self._served):
            self._served.discard(name)
            with contextlib.suppress(asyncio.TimeoutError, P2PDaemonError, OSError):
                await bounded(self._p2p._client.remove_unary_handler(_PREFIX + name), timeout_s)

    async def call(
        self,
        peer: PeerId,
        name: str,
        body: dict[str, Any],
        timeout_s: float,
        max_bytes: int = MAX_BODY_BYTES,
    ) -> dict[str, Any]:
        """What `peer` answers.

        Args:
            max_bytes: of the request and of the reply.
        Raises:
            PeerUnreachableError: no answer in time, no way to the peer, or our own p2pd is gone.
            RemoteFault: the named error that the peer answered, where we know it as its own fault's kind.
            RemoteCallError: any other error that the peer answered.
            FrameError: the request or the reply is too large or malformed.
        """
        request = pack_map(body)
        if len(request) > max_bytes:
            raise FrameTooLargeError(f"request {name!r} of {len(request)} bytes, limit {max_bytes}")
        reply = await self._unary(peer, name, request, timeout_s)
        if len(reply) > max_bytes + 1:
            raise FrameTooLargeError(f"reply of {peer} to {name!r} of {len(reply)} bytes, limit {max_bytes}")
        answer = unpack_map(memoryview(reply)[1:])
        if reply[:1] == _OK:
            return answer
        raise _named_error(peer, name, answer)

    async def _unary(self, peer: PeerId, name: str, request: bytes, timeout_s: float) -> bytes:
        """One unary call of p2pd.

        Not by `call_unary_handler`: cancelling that while its answer arrives sets a result on a cancelled
        future, which ends hivemind's read loop and with it every later call. Here the future is never
        cancelled.
        """
        control = self._p2p._client.control
        target = peer_id_of(peer)
        call_id = uuid4()
        answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        control._pending_calls[call_id] = answered
        try:
            call = p2pd_pb2.CallUnaryRequest(peer=target.to_bytes(), proto=_PREFIX + name, data=request)
            control._pending_messages.put_nowait(
                p2pd_pb2.PersistentConnectionRequest(callId=call_id.bytes, callUnary=call)
            )
            waits = {answered, control._read_task, control._write_task}
            await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            control._pending_calls.pop(call_id, None)
            if not answered.done():
                cancel = p2pd_pb2.PersistentConnectionRequest(callId=call_id.bytes, cancel=p2pd_pb2.Cancel())
                control._pending_messages.put_nowait(cancel)
        if not answered.done():
            if control._read_task.done() or control._write_task.done():
                raise PeerUnreachableError(f"{name!r} to {peer}: our own p2pd is gone")
            raise PeerUnreachableError(f"{peer} did not answer {name!r} within {timeout_s:.1f} s")
        try:
            return answered.result()
        except (P2PHandlerError, P2PDaemonError) as error:
            raise PeerUnreachableError(f"{name!r} to {peer} failed: {str(error)[:_MAX_TEXT]}") from None

    async def _answer(self, name: str, handler: Handler, max_bytes: int, data: bytes, peer: PeerId) -> bytes:
        if self._running[peer] >= self._max_per_peer or self._running.total() >= self._max_requests:
            return self._refuse(name, peer, BusyError(f"over {self._max_per_peer} requests at once"))
        self._running[peer] += 1
        task: asyncio.Task[dict[str, Any]] | None = None
        try:
            if len(data) > max_bytes:
                raise FrameTooLargeError(f"request of {len(data)} bytes, limit {max_bytes}")
            task = asyncio.ensure_future(handler(peer, unpack_map(data)))
            done, _ = await asyncio.wait({task}, timeout=self._handler_timeout_s)
            if not done:
                raise BusyError(f"{name!r} took longer than {self._handler_timeout_s:.0f} s")
            return _OK + pack_map(task.result())
        except asyncio.CancelledError:
            # Answered rather than passed on: hivemind never forgets a request whose handler was cancelled.
            return self._refuse(name, peer, BusyError("cancelled"))
        except Exception as error:
            return self._refuse(name, peer, error)
        finally:
            if task is not None:
                task.cancel()
            self._running[peer] -= 1
            if not self._running[peer]:
                del self._running[peer]

    def _refuse(self, name: str, peer: PeerId, error: Exception) -> bytes:
        self.refused[type(error).__name__] += 1
        if isinstance(error, RavnestError):
            logger.info("call %s of %s refused: %s", name, peer, error)
            text = str(error)[:_MAX_TEXT]
        else:
            logger.error("call %s of %s failed", name, peer, exc_info=error)
            text = "the handler failed"
        return _ERROR + pack_map({"type": type(error).__name__, "text": text})


def _named_error(peer: PeerId, call: str, answer: dict[str, Any]) -> RemoteFault:
    """The error that a peer answered with; only kinds of `RemoteFault` are taken by name.

    A peer may thus say that what we sent is stale or malformed, and never make us believe in a fault of our
    own or of our user.
    """
    name, text = answer.get("type"), answer.get("text")
    if not isinstance(name, str) or not isinstance(text, str):
        return FrameError(f"{peer} answered {call!r} with a malformed error")
    name, text = name[:100], text[:_MAX_TEXT]
    message = f"{peer} refused {call!r}: {text}"
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, RemoteFault) and kind is not RemoteCallError:
        return kind(message)
    return RemoteCallError(f"{message} ({name})", name, text)
