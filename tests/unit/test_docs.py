"""The documentation says what the code does: commands, flags, settings, tables, messages, links.

A table below `<!-- checked: NAME -->` is compared with the code by the test of that name.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import shlex
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import pytest

import ravnest_p2p as rn
from ravnest_p2p.cli import output, ravnest, ravnestd
from ravnest_p2p.client import request
from ravnest_p2p.core import ballot, compression, failover, membership
from ravnest_p2p.core.errors import RavnestError
from ravnest_p2p.core.optimizers import OPTIMIZERS
from ravnest_p2p.core.pipeline import schedule
from ravnest_p2p.core.types import Generation, JobPhase
from ravnest_p2p.daemon import peer_messages
from ravnest_p2p.daemon.config import DEFAULT_LISTEN
from ravnest_p2p.network import blob_exchange, frames, gateway, probes, records, records_keys, rpc
from ravnest_p2p.network.links_hello import protocol_of
from tests.unit.planning_cases import JOB, peers, planned, spec

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "bootstrap" / "README.md"]
UNITS = {"s": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "min": 60, "h": 3600, "d": 86400}


def text_of(name: str) -> str:
    return (ROOT / name).read_text()


def checked(page: str, name: str) -> str:
    """What stands below the mark, up to the next paragraph."""
    _, _, rest = text_of(page).partition(f"<!-- checked: {name} -->\n")
    assert rest, f"{page} has no mark {name}"
    return rest.split("\n\n")[0]


def table(page: str, name: str) -> list[list[str]]:
    """Cells of the table below the mark, without its head."""
    lines = checked(page, name).splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def head(page: str, name: str) -> list[str]:
    return [cell.strip() for cell in checked(page, name).splitlines()[0].strip("|").split("|")]


def code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def amount(text: str) -> float:
    number, _, unit = text.partition(" ")
    return float(number) * UNITS.get(unit, 1)


@cache
def parsers() -> dict[str, argparse.ArgumentParser]:
    """Every command by its words: "ravnestd", "ravnest peers", …"""
    commands = {"ravnestd": ravnestd.parser()}
    for action in ravnest._parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            commands |= {f"ravnest {name}": parser for name, parser in action.choices.items()}
    return commands


def command_lines(text: str) -> Iterator[str]:
    """Calls of ravnestd and ravnest in the code blocks of a page."""
    for block in re.findall(r"```(?:sh|console)\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            call = line.removeprefix("$ ").split("  #")[0].strip()
            if call.startswith(("ravnestd ", "ravnest ")) or call == "ravnestd":
                yield call


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_taken_by_the_real_parsers(page: Path) -> None:
    for call in command_lines(page.read_text()):
        words = shlex.split(call)
        length = 1 if words[0] == "ravnestd" else 2
        parser = parsers().get(" ".join(words[:length]))
        assert parser is not None, f"no such command: {call}"
        try:
            parser.parse_args(words[length:])
        except SystemExit:
            pytest.fail(f"refused: {call}")


def test_the_documentation_has_commands_of_every_kind() -> None:
    calls = [call for page in PAGES for call in command_lines(page.read_text())]
    for command in parsers():
        assert any(call.startswith(command) for call in calls), command


def options_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {
        next(o for o in a.option_strings if o.startswith("--")): a
        for a in parser._actions
        if a.option_strings
    }


def test_every_flag_of_ravnestd_is_in_the_guide_with_its_default() -> None:
    rows = {code(row[0])[0].split()[0]: row for row in table("docs/guide.md", "ravnestd flags")}
    options = options_of(ravnestd.parser())
    assert rows.keys() == options.keys()
    for flag, action in options.items():
        if isinstance(action.default, str) and action.default not in ("", argparse.SUPPRESS):
            assert code(rows[flag][2]) == [action.default], flag
        elif type(action.default) in (int, float):
            assert float(rows[flag][2]) == action.default, flag
    assert tuple(code(rows["--listen"][2])) == DEFAULT_LISTEN


def test_exit_codes() -> None:
    codes = [output.EXIT_OURS, output.EXIT_USER, output.EXIT_REMOTE, output.EXIT_INTERRUPTED]
    assert [int(row[0]) for row in table("docs/guide.md", "exit codes")] == [0, *codes]


def test_settings_of_a_job_with_their_defaults() -> None:
    rows = {code(row[0])[0]: row[2] for row in table("docs/guide.md", "JobRequest")}
    fields = rn.JobRequest.__dataclass_fields__
    assert list(rows) == list(fields)
    for name, default in rows.items():
        if type(fields[name].default) is int:
            assert int(default) == fields[name].default, name
    assert fields["loss"].default.__name__ == code(rows["loss"])[0]
    assert fields["optimizer"].default_factory.__name__ == code(rows["optimizer"])[0].removesuffix("()")


def transitions(page: str, name: str, cell_of: Callable[[Any, Any], str], states: Any, events: Any) -> None:
    assert head(page, name)[1:] == [event.name.lower() for event in events]
    rows = {row[0]: row[1:] for row in table(page, name)}
    assert rows == {state.value: [cell_of(state, event) for event in events] for state in states}


def test_membership_table() -> None:
    def cell(state: membership.PeerState, sign: membership.Sign) -> str:
        new = membership.TRANSITIONS.get((state, sign))
        return "–" if new is None else new.value

    transitions("docs/design.md", "membership", cell, membership.PeerState, membership.Sign)


def test_election_table() -> None:
    def cell(phase: ballot.Phase, turn: ballot.Turn) -> str:
        if (phase, turn) not in ballot.TRANSITIONS:
            return "–"
        new, terms = ballot.TRANSITIONS[phase, turn]
        return f"{new.value} +{terms}" if terms else new.value

    transitions("docs/design.md", "election", cell, ballot.Phase, ballot.Turn)


def test_phases_of_a_job() -> None:
    assert [row[0] for row in table("docs/design.md", "phases")] == [phase.value for phase in JobPhase]


def test_order_of_a_stages_operations() -> None:
    tree = ast.parse(Path(schedule.__file__).read_text())
    (policy,) = [n for n in ast.walk(tree) if isinstance(n, ast.BoolOp) and len(n.values) == 7]
    asked = [
        ast.unparse(value).removeprefix("self._").split("_")[0].removesuffix("()") for value in policy.values
    ]
    assert [row[1].lower() for row in table("docs/design.md", "schedule")] == asked
    assert {row[1] for row in table("docs/design.md", "schedule")} == {
        op.__name__ for op in get_args(schedule.Op)
    }


def test_timetable() -> None:
    """The picture, stage by stage: every operation in it is the one that the schedule gives."""
    shown = checked("docs/design.md", "timetable").splitlines()[1:4]
    for stage, line in enumerate(shown):
        picture = [cell for cell in line.split()[2:] if cell != "."]
        plan = schedule.StageSchedule(stage, 3, 2 - stage, 4, 4 * 8)
        taken: list[str] = []
        mark = ""
        sent = 0
        while len(taken) < len(picture):
            op = plan.next()
            if op is None:
                wanted = picture[len(taken)].lstrip("^|")
                if wanted[0] == "B":
                    plan.gradient_arrived(int(wanted[1:]))
                else:
                    plan.activation_arrived(sent)
                    sent += 1
                continue
            plan.finished(op)
            match op:
                case schedule.Forward(i=i, speculative=early):
                    taken.append(f"{mark}{'f' if early else 'F'}{i}")
                case schedule.Backward(i=i):
                    taken.append(f"{mark}B{i}")
            mark = {schedule.Speculate: "^", schedule.Step: "|"}.get(type(op), "")
        assert taken == picture


def test_versions() -> None:
    rows = {row[0]: [int(cell) for cell in row[1:]] for row in table("docs/design.md", "versions")}
    for name, versions in rows.items():
        tau = int(name.rpartition(" ")[2]) if "τ" in name else 0
        for i, version in enumerate(versions):
            form = schedule.closed_form(i, tau, 4)
            assert version == (form.forward if "τ" in name else form.backward), name


PLAN = planned(peers(4), {JOB: spec(stages=2, clusters=2)}).jobs[0]
OWN, MATE, *_ = PLAN.peers
HERE = PLAN.generation


def every_member_done(monitor: failover.RunMonitor) -> failover.Action | None:
    for mate in PLAN.peers[1:]:
        assert monitor.member_heard(mate, HERE, JobPhase.DONE, "", 11.0) is None
    return monitor.worker_state(JobPhase.DONE)


def one_silent(monitor: failover.RunMonitor) -> failover.Action | None:
    for mate in PLAN.peers[1:]:
        monitor.member_heard(mate, HERE, JobPhase.RUNNING, "", 11.0)
    monitor.worker_state(JobPhase.RUNNING)
    return monitor.tick(60.0)


EVENTS: dict[str, Callable[[failover.RunMonitor], failover.Action | None]] = {
    "own worker failed": lambda m: m.worker_state(JobPhase.FAILED, "x"),
    "a member reports this generation broken": lambda m: m.member_heard(
        MATE, HERE, JobPhase.BROKEN, "x", 11.0
    ),
    "a member is gone before it was done": lambda m: m.member_gone(MATE, "x", 11.0),
    "a member was not heard running in time": lambda m: m.tick(200.0),
    "a running member was silent for too long": one_silent,
    "a member obeys another generation of the same fence": lambda m: m.member_heard(
        MATE, HERE._replace(tag="other"), JobPhase.RUNNING, "", 11.0
    ),
    "a member obeys a higher generation": lambda m: m.member_heard(
        MATE, Generation(HERE.epoch, HERE.term + 1, "x"), JobPhase.RUNNING, "", 11.0
    ),
    "every member is done": every_member_done,
}


def test_failover_table() -> None:
    rows = table("docs/design.md", "failover")
    assert [row[0] for row in rows] == list(EVENTS)
    for event, action in rows:
        monitor = failover.RunMonitor(own=OWN, plan=PLAN, now_s=10.0, start_up_s=120.0, silence_s=30.0)
        assert type(EVENTS[event](monitor)).__name__ == action, event


def test_records_table() -> None:
    keys = {
        "capability": "peers/<shard>",
        "job": records_keys.jobs_key("<swarm>").rpartition("/")[2],
        "cancel": records_keys.cancels_key("<swarm>").rpartition("/")[2],
        "ticket": "tickets/<epoch>",
        "plan": "plan/<epoch>",
        "provider": "blob/<hash>",
    }
    kinds = {kind.KIND: kind for kind in get_args(records.Record)}
    rows = {row[0]: row for row in table("docs/design.md", "records")}
    assert rows.keys() == kinds.keys()
    for kind, (_, key, _, largest, life) in rows.items():
        assert code(key) == [f"{records_keys.key_prefix('<swarm>')}/{keys[kind]}"]
        assert (amount(largest), amount(life)) == (kinds[kind].MAX_BYTES, kinds[kind].MAX_TTL_S), kind
    made = [records_keys.peers_key("s", 1), records_keys.tickets_key("s", 1), records_keys.plan_key("s", 1)]
    assert [key.split("/")[3] for key in made] == ["peers", "tickets", "plan"]
    assert records_keys.blob_key("s", "00").split("/")[3] == "blob"  # type: ignore[arg-type]


def test_protocols_and_their_messages() -> None:
    ids = [
        gateway.PROTOCOL,
        f"{rpc._PREFIX}<name>",
        blob_exchange.PROTOCOL,
        probes.PROTOCOL,
        protocol_of("<nonce>"),
    ]
    assert [code(row[0])[0] for row in table("docs/design.md", "protocols")] == ids
    requests = {kind.model_fields["op"].default for kind in get_args(gateway.Request)}
    assert set(code(checked("docs/design.md", "gateway"))) == requests
    assert code(checked("docs/design.md", "frames")) == [kind.name for kind in frames.FrameKind]
    m = peer_messages
    calls = [m.OVERVIEW, m.PLAN, m.REPLAN, m.KEEP, m.LOGS, m.TRACE, m.BALLOT]
    assert [code(row[0])[0] for row in table("docs/design.md", "calls")] == calls


def test_limits_are_the_codes() -> None:
    for name, value, _ in table("docs/design.md", "limits"):
        parts = code(name)[0].split(".")
        depth = next(n for n in range(len(parts), 0, -1) if parts[n - 1].islower())
        found: Any = import_module(".".join(["ravnest_p2p", *parts[:depth]]))
        for part in parts[depth:]:
            found = getattr(found, part)
        assert amount(value) == found, name


@cache
def messages_of_the_code() -> tuple[str, ...]:
    """Every piece of literal text in the package."""
    found = []
    for path in (ROOT / "ravnest_p2p").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return tuple(found)


def test_messages_in_the_guide_exist() -> None:
    for row in table("docs/guide.md", "messages"):
        for fragment in re.split("…", code(row[0])[0]):
            words = fragment.strip(" ;,.:()")
            if len(words) > 3:
                assert any(words in text for text in messages_of_the_code()), f"{words!r} of {row[0]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    anchors = {re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-")
               for line in text.splitlines() if line.startswith("#")}  # fmt: skip
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("https://arxiv.org/"):
            continue
        if target.startswith("#"):
            assert target[1:] in anchors, target
        else:
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_of_the_pages_compiles_and_names_what_exists(page: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "rn":
                assert hasattr(rn, node.attr), node.attr
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("rn.JobRequest", "swarm.submit"):
                known = {*rn.JobRequest.__dataclass_fields__, "say"}
                assert {keyword.arg for keyword in node.keywords} <= known


def test_optimizers_and_their_numbers() -> None:
    rows = {code(row[0])[0]: code(row[1]) for row in table("docs/guide.md", "optimizers")}
    assert len(rows) == len(OPTIMIZERS)
    for name, numbers in rows.items():
        made = getattr(rn, name.removeprefix("rn."))
        parameters = [p for p in inspect.signature(made).parameters.values() if p.name != "common"]
        shown = [p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters]
        assert shown == numbers, name
        assert made(lr=0.1).name in OPTIMIZERS


def test_compressions_and_their_sizes() -> None:
    rows = {code(row[0])[0]: row for row in table("docs/guide.md", "compression")}
    assert tuple(rows) == compression.COMPRESSIONS
    for name in compression.CODECS:
        ratio = compression.encoded_bytes("none", 1 << 20) / compression.encoded_bytes(name, 1 << 20)
        assert rows[name][2] == f"{ratio:.3g}", name
    assert tuple(code(rows["auto"][1])) == compression.LADDER


def test_numbers_that_every_optimizer_takes() -> None:
    rows = {code(row[0])[0]: row[2] for row in table("docs/guide.md", "common numbers")}
    assert rows.keys() == request.Common.__annotations__.keys()
    for name, default in rows.items():
        value = getattr(rn.SGD(lr=0.1), name)
        assert default.startswith((f"`{value}`", str(value), "none" if value == () else "?")), name


def test_names_in_the_readme_and_the_guide_are_public() -> None:
    for name in re.findall(r"`rn\.(\w+)", text_of("README.md") + text_of("docs/guide.md")):
        assert name in rn.__all__
    assert issubclass(rn.UserFault, RavnestError)


def test_folders_that_pages_name_exist() -> None:
    names = re.findall(
        r"`((?:ravnest_p2p|examples|tests)/[\w/.]+)`", "".join(page.read_text() for page in PAGES)
    )
    assert names
    for name in names:
        assert (ROOT / name).exists(), name


def test_decisions_are_numbered_listed_and_whole() -> None:
    files = sorted((ROOT / "docs" / "adr").glob("*.md"))
    for number, path in enumerate(files, 1):
        text = path.read_text()
        assert path.name.startswith(f"{number:04}-")
        assert text.startswith(f"# {number}. ")
        assert re.findall(r"^## (.*)", text, re.MULTILINE) == ["Context", "Decision", "Consequences"]
        title = text.splitlines()[0].partition(". ")[2]
        assert f"| [{number:04}](adr/{path.name}) | {title} |" in text_of("docs/README.md")


def test_bootstrap_settings_are_those_of_its_entry_point() -> None:
    read = set(re.findall(r"RAVNEST_\w+", text_of("bootstrap/run"))) - {"RAVNEST_HOME"}
    assert set(re.findall(r"^#(RAVNEST_\w+)=", text_of("bootstrap/bootstrap.env"), re.MULTILINE)) == read
    defaults = dict(re.findall(r'^: "\$\{(\w+):=(.*)\}"$', text_of("bootstrap/run"), re.MULTILINE))
    shown = dict(re.findall(r"^#(RAVNEST_\w+)=(.+)$", text_of("bootstrap/bootstrap.env"), re.MULTILINE))
    for name in defaults.keys() & shown.keys():
        assert defaults[name] == shown[name], name
    flags = set(re.findall(r"(--[a-z-]+)", text_of("bootstrap/run")))
    assert flags <= options_of(ravnestd.parser()).keys()
