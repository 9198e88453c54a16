"""What a stage host works with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from ravnest_p2p.core.types import Fence, PeerId
from ravnest_p2p.daemon.files import JobFiles
from ravnest_p2p.daemon.jobbook import JobBook
from ravnest_p2p.network.janitor import Janitor
from ravnest_p2p.network.rpc import Rpc


@dataclass(slots=True)
class HostDeps:
    """What a host works with; `rpc` and `files` are renewed when p2pd had to be restarted.

    Attributes:
        memory_bytes: what the worker may use.
        device: that the worker computes on.
        microbatch_flops: most of one micro-batch, over all stages.
        compiler: programs that workers may start to compile their stage.
        janitor: ends workers that outlive this process.
        floor: highest fence obeyed before this daemon started; it has lost the workers of that one too.
        reachable: tells whether a co-member answers.
        stale: tells those who may lead that the adopted plan no longer holds, and why.
    """

    own: PeerId
    rpc: Rpc
    files: JobFiles
    book: JobBook
    control_socket: str
    runtime_folder: Path
    jobs_folder: Path
    memory_bytes: Callable[[], int]
    threads: int
    device: Callable[[], str]
    microbatch_flops: float
    compiler: tuple[Path, ...]
    reachable: Callable[[PeerId, bool], None]
    stale: Callable[[str], Awaitable[None]]
    janitor: Janitor
    floor: Fence | None
