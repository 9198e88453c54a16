"""Ravnest p2p: have a PyTorch model trained by a swarm of ordinary PCs.

    import ravnest_p2p as rn

    swarm = rn.connect("/ip4/192.0.2.1/tcp/4001/p2p/12D3Koo…")
    job = swarm.submit(model, data=(x, y), optimizer=rn.AdamW(lr=3e-3), passes=20)
    for progress in job.follow():
        print(progress.loss)
    model.load_state_dict(job.result())

The names below are loaded when they are first used: peers and tools import parts of this package without
    the SDK.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ravnest_p2p.client import aio
    from ravnest_p2p.client.progress import Progress
    from ravnest_p2p.client.request import LAMB, SGD, Adam, AdamW, JobRequest, Muon
    from ravnest_p2p.client.swarm import Job, Swarm, connect
    from ravnest_p2p.core.errors import OurFault, RavnestError, RemoteFault, UserFault
    from ravnest_p2p.model.capture import capture
    from ravnest_p2p.model.package import Package

__version__ = "0.1.0"
__all__ = [
    "LAMB",
    "SGD",
    "Adam",
    "AdamW",
    "Job",
    "JobRequest",
    "Muon",
    "OurFault",
    "Package",
    "Progress",
    "RavnestError",
    "RemoteFault",
    "Swarm",
    "UserFault",
    "aio",
    "capture",
    "connect",
]
_HOMES = {
    "SGD": "client.request",
    "Adam": "client.request",
    "AdamW": "client.request",
    "JobRequest": "client.request",
    "LAMB": "client.request",
    "Muon": "client.request",
    "Job": "client.swarm",
    "Swarm": "client.swarm",
    "connect": "client.swarm",
    "Package": "model.package",
    "Progress": "client.progress",
    "capture": "model.capture",
    "OurFault": "core.errors",
    "RavnestError": "core.errors",
    "RemoteFault": "core.errors",
    "UserFault": "core.errors",
}


def __getattr__(name: str) -> Any:
    if name == "aio":
        return import_module("ravnest_p2p.client.aio")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
