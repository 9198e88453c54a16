"""The worker's life: idle → run → idle …, ended by the end of the channel.

One worker serves one job; between two generations of it the process stays, so that a re-formed pipeline
does not wait for torch to be imported again. A run that fails is reported and leaves the process idle;
a run that is told to stop ends within one operation, or with the round under way. Where a run left the device
unusable, the process ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os

from ravnest_p2p.core.errors import RavnestError
from ravnest_p2p.daemon.channel import Channel
from ravnest_p2p.daemon.messages import (
    Command,
    Endpoints,
    FieldFiles,
    Idle,
    RunDone,
    RunFailed,
    StartRun,
    Stopped,
    StopRun,
)
from ravnest_p2p.daemon.worker.loading import Lent
from ravnest_p2p.daemon.worker.stage_run import StageRun
from ravnest_p2p.network.direct import Direct
from ravnest_p2p.training import works

MAX_TEXT = 4000


class WorkerService:
    def __init__(self, channel: Channel[Command], lent: Lent, direct: Direct | None = None) -> None:
        self._channel = channel
        self._lent = lent
        self._direct = direct
        self._run: StageRun | None = None
        self._task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Serve commands until ravnestd is gone."""
        await self._channel.send(Idle())
        while (command := await self._channel.receive()) is not None:
            match command:
                case StartRun():
                    await self._stop()
                    self._run = StageRun(command, self._lent, self._channel.send, self._direct)
                    self._task = asyncio.create_task(self._perform(self._run))
                case Endpoints() if self._run is not None:
                    self._run.endpoints_known(command.nonces)
                case FieldFiles() if self._run is not None:
                    self._run.fields_fetched(command.files)
                case StopRun():
                    if self._run is not None:
                        await self._run.end_round(command.round_s)
                    await self._stop()
                    await self._channel.send(Stopped())
        await self._stop()

    async def _perform(self, run: StageRun) -> None:
        try:
            await run.train()
        except asyncio.CancelledError:
            raise
        except Exception as error:
            suspect = getattr(error, "peer", None)
            text = str(error) if isinstance(error, RavnestError) else repr(error)
            await self._channel.send(
                RunFailed(error=type(error).__name__, message=text[:MAX_TEXT], suspect=suspect)
            )
            if not works(self._lent.device):
                # Not in good order, which would need the device; ravnestd starts another worker.
                os._exit(1)
        else:
            await self._channel.send(RunDone())
            # Other stages may still wait for what our links have to re-send: they stay open until `StopRun`.
            await asyncio.Event().wait()
        finally:
            await run.close()

    async def _stop(self) -> None:
        task, self._task, self._run = self._task, None, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
