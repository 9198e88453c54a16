"""The SDK against real p2pd peers: submit, follow and fetch; outage, fail-over, and errors by name."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ravnest_p2p as rn
from ravnest_p2p.client import steps
from ravnest_p2p.client.swarm import Swarm
from ravnest_p2p.core.errors import BlobError, ConfigError, JobError, OurFault, PeerUnreachableError
from ravnest_p2p.core.types import JobPhase
from ravnest_p2p.daemon.jobbook import blobs_of
from ravnest_p2p.network.records_manifest import parse_manifest
from tests.integration.gateway_peer import GatewayPeer
from tests.unit.pieces import save_piece

pytestmark = pytest.mark.timeout(60)


class Tied(nn.Module):
    """Two layers that share one weight, BatchNorm, and a last layer; the frozen scale is never trained."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 4)
        self.down = nn.Linear(4, 4)
        self.down.weight = self.up.weight
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 4)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.head(self.norm(self.down(torch.relu(self.up(x)))))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAVNEST_HOME", str(tmp_path / "home"))


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[GatewayPeer]:
    with GatewayPeer(tmp_path / "a") as peer:
        yield peer


@pytest.fixture
def swarm(peer: GatewayPeer) -> Iterator[Swarm]:
    with rn.connect(peer.address) as swarm:
        yield swarm


def dataset(samples: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(samples, 4, generator=generator), torch.arange(samples) % 4


def finish(peer: GatewayPeer, job: str, model: nn.Module, folder: Path) -> dict[str, Tensor]:
    """Make the job done, with every trained tensor one higher; returns the state expected."""
    spec = parse_manifest(peer.blobs.path(job).read_bytes())
    state = {name: value + (name != "scale") for name, value in model.state_dict().items()}
    params = {name: state[name] for name, _ in model.named_parameters()}
    norm = {name: state[name] for name in state if name.startswith("norm.") and name not in params}
    cut = len(spec.layers) // 2
    assert cut
    pieces = []
    for lo, hi, starts, buffers in (
        (0, cut, ("up", "down"), {}),
        (cut, len(spec.layers), ("norm", "head"), norm),
    ):
        path = folder / f"piece-{lo}"
        own = {name: value for name, value in params.items() if name.startswith(starts)}
        save_piece(path, own, buffers, {}, version=1, batches_done=1)
        pieces.append({"lo": lo, "hi": hi, "blob": peer.blobs.put_file(path), "batches_done": 1})

    def over() -> None:
        peer.backend.pieces[job] = pieces
        peer.backend.jobs_known[job] |= {"phase": "done", "batches_done": 10}

    peer.change(over)
    return state


def test_a_job_is_submitted_followed_and_fetched(peer: GatewayPeer, swarm: Swarm, tmp_path: Path) -> None:
    model = Tied()
    job = swarm.submit(model, dataset(), name="tied", optimizer=rn.SGD(lr=0.1), passes=2)
    spec = parse_manifest(peer.blobs.path(job.id).read_bytes())
    assert hashlib.sha256(peer.blobs.path(job.id).read_bytes()).hexdigest() == job.id
    assert (spec.name, spec.samples, spec.total_batches, spec.optimizer.name) == ("tied", 64, 2, "sgd")
    assert [(field.name, field.role, field.shape) for field in spec.fields] == [
        ("x0", "input", (4,)),
        ("y0", "label", ()),
    ]
    for blob in blobs_of(spec):
        assert peer.blobs.has(blob)
    assert peer.backend.requesters[job.id] == swarm.peer_id

    seen: list[tuple[JobPhase, int]] = []
    for progress in job.follow():
        seen.append((progress.phase, progress.batches_done))
        if progress.phase is JobPhase.WAITING:
            peer.change(lambda: peer.backend.jobs_known[job.id].update(phase="running", batches_done=4))
        elif progress.phase is JobPhase.RUNNING:
            expected = finish(peer, job.id, model, tmp_path)
    assert seen == [(JobPhase.WAITING, 0), (JobPhase.RUNNING, 4), (JobPhase.DONE, 10)]

    result = job.result(timeout_s=10)
    assert result.keys() == model.state_dict().keys()
    assert [name for name in expected if not torch.equal(result[name], expected[name])] == []
    assert result["down.weight"] is result["up.weight"]
    model.load_state_dict(result)
    again = swarm.job(job.id[:8])
    assert torch.equal(again.result(timeout_s=10)["up.weight"], expected["up.weight"])


def test_asyncio_does_the_same(peer: GatewayPeer, tmp_path: Path) -> None:
    async def main() -> None:
        model = Tied()
        async with rn.aio.connect(peer.address) as swarm:
            assert (await swarm.hello())["peer"] == peer.peer_id
            job = await swarm.submit(model, dataset())
            assert [known.job for known in await swarm.jobs()] == [job.id]
            phases = []
            async for progress in job.follow():
                phases.append(progress.phase)
                if progress.phase is JobPhase.WAITING:
                    expected = await asyncio.to_thread(finish, peer, job.id, model, tmp_path)
            assert phases == [JobPhase.WAITING, JobPhase.DONE]
            result = await job.result(timeout_s=10)
            assert all(torch.equal(result[name], expected[name]) for name in expected)
            assert [line["seq"] for line in await job.logs(after=3)] == [4, 5]
            assert (await job.trace()).stages == ()
            with pytest.raises(JobError):
                await (await swarm.job("f" * 64)).status()

    asyncio.run(main())


def test_a_cancelled_asyncio_task_ends_its_request_alone(peer: GatewayPeer) -> None:
    async def main() -> None:
        async with rn.aio.connect(peer.address) as swarm:
            peer.change(lambda: setattr(peer.backend, "hold", asyncio.Event()))
            waiting = asyncio.create_task((await swarm.job("a" * 64)).status())
            await asyncio.to_thread(peer.backend.asked.wait, 10)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert (await swarm.hello())["peer"] == peer.peer_id

    asyncio.run(main())


def test_uploaded_blobs_are_not_sent_again(peer: GatewayPeer, swarm: Swarm) -> None:
    model, lines = Tied(), []
    swarm.submit(model, dataset())
    before = peer.blobs.hashes()
    swarm.submit(model, dataset(), seed=1, say=lines.append)
    assert len(peer.blobs.hashes()) == len(before) + 1
    assert lines[-1].startswith("uploading: 100 %")


def test_only_the_requester_cancels(peer: GatewayPeer, swarm: Swarm, monkeypatch: pytest.MonkeyPatch) -> None:
    job = swarm.submit(Tied(), dataset())
    monkeypatch.setenv("RAVNEST_HOME", str(peer.blobs._folder.parent / "stranger"))
    with rn.connect(peer.address) as strange, pytest.raises(JobError, match="only its requester"):
        strange.job(job.id).cancel()
    job.cancel()
    assert job.status().phase is JobPhase.CANCELLED
    with pytest.raises(JobError, match="its requester cancelled it"):
        job.result(timeout_s=5)


def test_a_result_that_is_late_is_a_job_error(swarm: Swarm) -> None:
    job = swarm.submit(Tied(), dataset())
    with pytest.raises(JobError, match="not done after 0 s"):
        job.result(timeout_s=0.2)


def test_a_job_is_named_by_the_beginning_of_its_id(swarm: Swarm) -> None:
    job = swarm.submit(Tied(), dataset())
    assert swarm.job(job.id[:6]).id == job.id
    with pytest.raises(JobError, match="no job begins with"):
        swarm.job("zz")
    assert steps.only_match("a", ["ab", "b"]) == "ab"
    with pytest.raises(JobError, match="several"):
        steps.only_match("a", ["ab", "ac"])


def test_a_forged_result_is_refused(peer: GatewayPeer, swarm: Swarm, tmp_path: Path) -> None:
    model = Tied()
    job = swarm.submit(model, dataset())
    finish(peer, job.id, model, tmp_path)
    blob = peer.backend.pieces[job.id][0]["blob"]
    path = peer.blobs.path(blob)
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(BlobError, match="something else"):
        job.result(timeout_s=10)


def test_a_result_without_a_trained_tensor_is_refused(
    peer: GatewayPeer, swarm: Swarm, tmp_path: Path
) -> None:
    model = Tied()
    job = swarm.submit(model, dataset())
    finish(peer, job.id, model, tmp_path)
    pieces = peer.backend.pieces[job.id]
    pieces[0] |= {"blob": pieces[1]["blob"]}
    with pytest.raises(BlobError, match=r"lacks 3 trained tensors, such as 'down\.bias'"):
        job.result(timeout_s=10)


def test_pieces_with_a_gap_are_refused(peer: GatewayPeer, swarm: Swarm, tmp_path: Path) -> None:
    model = Tied()
    job = swarm.submit(model, dataset())
    finish(peer, job.id, model, tmp_path)
    peer.change(lambda: peer.backend.pieces[job.id].pop(0))
    with pytest.raises(rn.RemoteFault, match=r"covers [01] of"):
        job.result(timeout_s=10)


def test_the_swarm_stays_usable_through_an_outage(peer: GatewayPeer, swarm: Swarm) -> None:
    job = swarm.submit(Tied(), dataset())
    peer.stop()
    back = threading.Timer(1.0, peer.start)
    back.start()
    started = time.monotonic()
    assert job.status().phase is JobPhase.WAITING
    assert time.monotonic() - started > 0.5
    back.join()


def test_the_swarm_outlives_its_first_gateway(peer: GatewayPeer, tmp_path: Path) -> None:
    with GatewayPeer(tmp_path / "b") as other:
        peer.change(lambda: peer.backend.others.append({"peer": other.peer_id, "addresses": [other.address]}))
        with rn.connect(peer.address) as swarm:
            assert swarm.hello()["peer"] == peer.peer_id
            peer.stop()
            assert swarm.hello()["peer"] == other.peer_id
            job = swarm.submit(Tied(), dataset())
            assert job.id in other.backend.jobs_known


def test_nobody_there_is_said_within_the_time(peer: GatewayPeer) -> None:
    peer.stop()
    started = time.monotonic()
    with pytest.raises(PeerUnreachableError, match=r"127\.0\.0\.1"):
        rn.connect(peer.address, timeout_s=1.0)
    assert time.monotonic() - started < 5.0


def test_another_identity_at_the_address_is_refused(peer: GatewayPeer) -> None:
    address = peer.address.rpartition("/")[0] + "/12D3KooWFNrdsdUdZRNVJSTjdWEYpruXAXhEeZG3MXnZxjVNtXSA"
    with pytest.raises(PeerUnreachableError):
        rn.connect(address, timeout_s=1.0)


def test_a_closed_connection_says_so(peer: GatewayPeer) -> None:
    swarm = rn.connect(peer.address)
    swarm.close()
    swarm.close()
    with pytest.raises(OurFault, match="closed"):
        swarm.hello()


def test_closing_ends_a_waiting_call(peer: GatewayPeer) -> None:
    swarm = rn.connect(peer.address)
    peer.change(lambda: setattr(peer.backend, "hold", asyncio.Event()))
    failed: list[BaseException] = []

    def wait() -> None:
        try:
            swarm.job("a" * 64).status()
        except BaseException as error:
            failed.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert peer.backend.asked.wait(10)
    swarm.close()
    waiting.join(5.0)
    assert not waiting.is_alive()
    assert isinstance(failed[0], OurFault)


def test_connect_without_an_address_finds_the_local_daemon(peer: GatewayPeer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no ravnestd runs"):
        rn.connect()
    (tmp_path / "home").mkdir(exist_ok=True)
    (tmp_path / "home" / "local.json").write_text(json.dumps({"addresses": [peer.address]}))
    with rn.connect() as swarm:
        assert swarm.hello()["peer"] == peer.peer_id
    (tmp_path / "home" / "local.json").write_text('{"addresses": 7}')
    with pytest.raises(ConfigError, match="no addresses"):
        rn.connect()


@pytest.mark.parametrize(
    "address", ["", "localhost:4001", "/ip4/127.0.0.1/tcp/4001", "/ip4/1.2.3.4/udp/1/p2p/12D3"]
)
def test_a_malformed_address_is_the_users_fault(address: str) -> None:
    with pytest.raises(ConfigError):
        rn.connect(address)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": (torch.zeros(8, 4),)}, "needs inputs and 1 of labels"),
        ({"data": (torch.zeros(8, 4), torch.zeros(7))}, "same length"),
        ({"data": (torch.zeros(8, 4), "text")}, "must be a tensor"),
        ({"data": (torch.zeros(8, 4), torch.zeros(8))}, "do not fill one micro-batch"),
        ({"data": (torch.zeros(32, 4), torch.zeros(32))}, "do not fill one batch of 64"),
        ({"data": dataset(), "passes": 0}, "passes must be at least 1"),
        ({"data": dataset(), "stages": -1}, "stages must not be negative"),
        ({"data": dataset(), "stages": 99}, "no more stages than layers"),
        ({"data": dataset(), "optimizer": rn.AdamW(lr=-1.0)}, "learning rate"),
        ({"data": dataset(), "optimizer": rn.SGD(lr=0.1, schedule="sawtooth")}, "unknown schedule"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_job_that_does_not_hold_is_refused_before_anything_is_sent(
    settings: dict[str, object], message: str, tmp_path: Path
) -> None:
    request = rn.JobRequest(Tied(), **settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=f"(?i){message}"), steps.ready(request, steps.nothing):
        pass


def test_arrays_and_datasets_become_columns() -> None:
    x, y = dataset()
    rows = torch.utils.data.TensorDataset(x, y)
    arrays = (x.double().numpy(), y.numpy().astype(np.int32))
    jobs = []
    for data in ((x, y), rows, arrays):
        torch.manual_seed(0)
        with steps.ready(rn.JobRequest(Tied(), data), steps.nothing) as (prepared, _):
            jobs.append(prepared.job)
    assert jobs[0] == jobs[1] == jobs[2]
