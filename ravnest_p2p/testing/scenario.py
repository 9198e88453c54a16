"""A swarm's worst two minutes, drawn from a seed: crashes, restarts, splits, loss, wrong clocks, usurpers.

Problem: the failures that break a protocol are combinations that nobody thinks of. Solution: `Scenario`
draws them, runs the same machines as the daemon through them with every invariant watched, then lets the
network heal and demands that all peers alive come to obey one plan in a bounded number of terms. The same
seed gives the same run:

    python -m ravnest_p2p.testing.scenario --seed 17 --peers 200 --transcript
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields
from random import Random

from ravnest_p2p.core.ballot import Adopted, ElectionConfig
from ravnest_p2p.core.election import Election
from ravnest_p2p.core.types import Fence, PeerId

from .clock import VirtualClock
from .directory import SimulatedDirectory
from .invariants import InvariantError, Invariants
from .network import SimulatedNetwork
from .strangers import STRANGERS, Strangers
from .swarm import SwarmPeer
from .world import DISK, World

MAX_SKEW_S = 1.5
LOOK_S, ALL_BACK_S = 0.5, 5.0
"""How often the observer looks for agreement, and within which all that come back are there."""


@dataclass(frozen=True, slots=True)
class ScenarioConfig:
    """One run.

    Attributes:
        faults_s: how long things go wrong.
        crashes: share of the peers that crash in this time, some of them more than once.
        partitions: how often the network splits.
        strangers: who publishes plans of its own, see `strangers`.
        terms_to_agree: terms after the start of the first quiet epoch within which all must agree.
    """

    seed: int
    peers: int = 200
    faults_s: float = 90.0
    crashes: float = 0.08
    partitions: int = 2
    strangers: tuple[PeerId, ...] = STRANGERS
    terms_to_agree: int = 4
    epoch_s: float = 40.0
    term_s: float = 6.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run in which every invariant held.

    Attributes:
        fence: obeyed by all peers in the end.
        agreed_after_s: from the end of the faults.
        terms: of the first quiet epoch, until most obey one plan of it.
        alive: peers alive in the end.
        adoptions, effective, frames: plans adopted, clusters formed, data frames taken.
        batches: most batches that a saved state contains.
    """

    fence: Fence
    agreed_after_s: float
    terms: int
    alive: int
    events: int
    adoptions: int
    effective: int
    frames: int
    batches: int


class Scenario:
    """Draws the faults of a seed and runs them.

    Args:
        election_class: another one than the product's, to see that its mistakes are caught.
        disk: what peers still know after a crash.
        transcript: keep one line for each deed in `world.transcript`.
    """

    def __init__(
        self,
        config: ScenarioConfig,
        election_class: type[Election] = Election,
        disk: frozenset[str] = DISK,
        transcript: bool = False,
    ) -> None:
        self._config = config
        random = self._random = Random(config.seed)
        clock = VirtualClock(config.epoch_s * (1000 + random.random()))
        network = SimulatedNetwork(clock, random, loss=0.1 * random.random())
        directory = SimulatedDirectory(clock, random, network.side, loss=0.1 * random.random())
        rules = ElectionConfig(
            swarm=f"simulated-{config.seed}",
            epoch_s=config.epoch_s,
            term_s=config.term_s,
            min_term_s=2.0,
            grace_s=4.0,
            tickets_wanted=24,
        )
        self.world = World(
            rules,
            random,
            clock,
            network,
            directory,
            Invariants(strangers=STRANGERS),
            peers_expected=config.peers,
            election_class=election_class,
            disk=disk,
            transcript=[] if transcript else None,
        )
        skews_s = [random.uniform(-MAX_SKEW_S, MAX_SKEW_S) for _ in range(config.peers)]
        self.peers = [
            SwarmPeer(self.world, PeerId(f"p{number:03}"), skew_s) for number, skew_s in enumerate(skews_s)
        ]
        self.world.peers = {peer.name: peer for peer in self.peers}
        self._begin_s = clock.now_s

    def run(self) -> Outcome:
        """Run the faults, heal, and wait for agreement.

        Raises:
            InvariantError: something happened that must not, or the peers do not agree in time; the message
                names the seed and how to run it again.
        """
        clock = self.world.clock
        try:
            self._draw_faults()
            clock.run_until(self._begin_s + self._config.faults_s)
            self._end_faults()
            return self._agree()
        except InvariantError as error:
            at_s = clock.now_s - self._begin_s
            raise InvariantError(f"{error} ({at_s:.2f} s into the run; again: {self.command})") from error

    @property
    def command(self) -> str:
        """How to run this seed again."""
        return f"python -m ravnest_p2p.testing.scenario {' '.join(flags(self._config))} --transcript"

    def _draw_faults(self) -> None:
        config, random, clock = self._config, self._random, self.world.clock
        for peer in self.peers:
            clock.after(5 * random.random(), peer.start)
        first_s, last_s = 12.0, config.faults_s - 2
        for _ in range(round(config.crashes * config.peers)):
            clock.after(random.uniform(first_s, last_s), self._crash, random.choice(self.peers))
        span_s = (last_s - first_s) / max(1, config.partitions)
        for number in range(config.partitions):
            start_s = first_s + span_s * (number + 0.4 * random.random())
            clock.after(start_s, self._split)
            clock.after(start_s + span_s * random.uniform(0.2, 0.55), self._heal)
        clock.after(first_s, self._tempt_leaders)
        Strangers(self.world, self.peers, random).let_in(config.strangers, first_s)

    def _tempt_leaders(self) -> None:
        self.world.crash_of_leader = 0.1

    def _crash(self, peer: SwarmPeer) -> None:
        if peer.alive:
            peer.lost = len(self.peers) > 10 and self._random.random() < 0.2
            peer.crash()

    def _split(self) -> None:
        random = self._random
        names = [peer.name for peer in self.peers]
        random.shuffle(names)
        cut = sorted(random.sample(range(1, len(names)), min(len(names) - 1, random.choice((1, 1, 2)))))
        sides = [names[low:high] for low, high in zip(cut, [*cut[1:], len(names)], strict=True)]
        self.world.network.partition(*sides)
        self.world.directory.split(1 + len(sides))
        self.world.tell("-", f"the network splits into {1 + len(sides)}")

    def _heal(self) -> None:
        self.world.network.heal()
        self.world.directory.heal()
        self.world.tell("-", "the network is whole")

    def _end_faults(self) -> None:
        """Nothing goes wrong from here but loss and delay; who is not lost comes back."""
        self._heal()
        self.world.crash_of_leader = 0.0
        for peer in self.peers:
            if not peer.lost:
                self.world.clock.after(3 * self._random.random(), peer.restart)

    def _agree(self) -> Outcome:
        """Wait through the first quiet epoch, in which everything has to be well again."""
        world, config = self.world, self._config
        clock, quiet_s = world.clock, world.clock.now_s
        epoch = 1 + int((quiet_s + ALL_BACK_S) // config.epoch_s)
        within_s = world.rules.grace_s + MAX_SKEW_S + config.terms_to_agree * config.term_s
        deadline_s = epoch * config.epoch_s + within_s
        terms = 0
        while True:
            clock.run_until(clock.now_s + LOOK_S)
            alive = [peer for peer in self.peers if peer.alive]
            obeyed = Counter(peer.saved for peer in alive)
            most, count = max(obeyed.items(), key=lambda each: each[1], default=(None, 0))
            if terms == 0 and most is not None and most.fence.epoch == epoch and 2 * count > len(alive):
                terms = 1 + most.fence.term
            agreed = most if len(obeyed) == 1 else None
            if agreed is not None and terms:
                break
            if clock.now_s >= deadline_s:
                raise InvariantError(f"{len(alive)} peers obey {len(obeyed)} plans: {_most(obeyed)}")
        watch = world.invariants
        return Outcome(
            agreed.fence,
            clock.now_s - quiet_s,
            terms,
            len(alive),
            clock.events,
            watch.adoptions,
            watch.effective,
            watch.frames,
            max((done for _, _, done in world.blobs), default=0),
        )


def _most(obeyed: Iterable[Adopted | None]) -> str:
    return ", ".join(sorted(str(None if plan is None else plan.fence) for plan in obeyed)[-4:])


def flags(config: ScenarioConfig) -> list[str]:
    """What `main` makes the same run of: the seed, the peers, and what else is not as it always is."""
    usual = ScenarioConfig(config.seed)
    told = []
    for name in (field.name for field in fields(config)):
        value = getattr(config, name)
        if name in ("seed", "peers") or value != getattr(usual, name):
            values = value if isinstance(value, tuple) else (value,)
            told += [f"--{name.replace('_', '-')}", *map(str, values)]
    return told


def main() -> None:
    """Run one seed and print what came of it."""
    parser = argparse.ArgumentParser(
        prog="python -m ravnest_p2p.testing.scenario",
        description="Run one seed of the simulated swarm. Ends with a failure where its peers do not agree.",
    )
    parser.add_argument("--seed", type=int, required=True)
    for name, usual in ((field.name, field.default) for field in fields(ScenarioConfig)):
        if isinstance(usual, (int, float)):
            flag = f"--{name.replace('_', '-')}"
            parser.add_argument(flag, type=type(usual), default=usual, help="(default: %(default)s)")
    parser.add_argument("--strangers", nargs="*", choices=STRANGERS, default=STRANGERS, help="(default: all)")
    parser.add_argument("--transcript", action="store_true", help="also print each deed")
    given = vars(parser.parse_args())
    transcript = given.pop("transcript")
    config = ScenarioConfig(**given | {"strangers": tuple(map(PeerId, given["strangers"]))})
    scenario = Scenario(config, transcript=transcript)
    try:
        print(scenario.run())
    finally:
        print("\n".join(scenario.world.transcript or ()))


if __name__ == "__main__":
    main()
