"""What a stage host works with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from ravnest_p2p.core.errors import OurFault
from ravnest_p2p.core.types import Fence, JobId, PeerId
from ravnest_p2p.daemon.files import JobFiles
from ravnest_p2p.daemon.jobbook import JobBook
from ravnest_p2p.daemon.reach import HostsOf
from ravnest_p2p.daemon.timelines import job_folder
from ravnest_p2p.daemon.workers import WorkerProcess
from ravnest_p2p.network.janitor import Janitor
from ravnest_p2p.network.rpc import Rpc


@dataclass(slots=True)
class HostDeps:
    """What a host works with; `rpc` and `files` are renewed when p2pd had to be restarted.

    Attributes:
        memory_bytes: what the worker may use; with 0, none is started.
        up_bps: what was measured of the line, 0 before.
        device: that the worker computes on.
        microbatch_flops: most of one micro-batch, over all stages.
        compiler: programs that workers may start to compile their stage.
        hosts_of, listen: for direct connections of workers; None where they have none.
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
    up_bps: Callable[[], float]
    threads: int
    device: Callable[[], str]
    microbatch_flops: float
    compiler: tuple[Path, ...]
    hosts_of: HostsOf | None
    listen: tuple[str, ...]
    reachable: Callable[[PeerId, bool], None]
    stale: Callable[[str], Awaitable[None]]
    janitor: Janitor
    floor: Fence | None

    async def spawn_worker(self, job: JobId) -> WorkerProcess:
        """A new worker for a stage of the job, with what this peer lends.

        Raises:
            OurFault: it lends nothing.
        """
        memory_bytes = self.memory_bytes()
        if not memory_bytes:
            raise OurFault("this peer lends no memory, or has not measured yet how much")
        self.jobs_folder.mkdir(parents=True, exist_ok=True)
        store = self.files.store
        return await WorkerProcess.spawn(
            memory_bytes=memory_bytes,
            disk_bytes=store.capacity_bytes,
            threads=self.threads,
            device=self.device(),
            microbatch_flops=self.microbatch_flops,
            compiler=self.compiler,
            hosts_of=self.hosts_of,
            listen=self.listen,
            blobs_folder=store.folder,
            job_folder=job_folder(self.jobs_folder, job),
            runtime_folder=self.runtime_folder,
            control_socket=self.control_socket,
            log_path=self.jobs_folder / f"worker-{job[:16]}.log",
        )
