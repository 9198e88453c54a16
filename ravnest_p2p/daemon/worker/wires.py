"""What all links of a worker share: their limits, and the name of the peer that is lost with a link."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ravnest_p2p.core.errors import CoMemberLostError, LinkClosedError, LinkLostError
from ravnest_p2p.network.frames import Limits
from ravnest_p2p.network.links import Link
from ravnest_p2p.network.links_state import LinkLimits

MAX_HEADER_BYTES = 1024
CONNECT_S = 60.0
"""The slowest member's start: torch is imported and weights are loaded before it listens."""


def link_limits(payload_bytes: int) -> LinkLimits:
    """Limits of a link whose largest frame carries so many bytes; both ends compute the same."""
    return LinkLimits(frame=Limits(MAX_HEADER_BYTES, payload_bytes), connect_s=CONNECT_S)


@contextmanager
def lost(link: Link) -> Iterator[None]:
    """Name the peer where a link ends under its user.

    Raises:
        CoMemberLostError: the link was lost or closed by the other end.
    """
    try:
        yield
    except (LinkLostError, LinkClosedError) as error:
        raise CoMemberLostError(link.remote, str(error)) from error
