"""The state of the election as text and tables for people; what peers say is never markup."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ravnest_p2p.cli.live import number, seconds_text, short


def print_epoch(console: Console, epoch: dict[str, Any]) -> None:
    """Epoch and leader, the plan's jobs, and what each peer obeys and refused."""
    console.print(_headline(epoch))
    plan = epoch.get("plan")
    if plan is None:
        console.print(Text("no plan is obeyed here yet", style="dim"))
    else:
        console.print(_jobs(plan["jobs"]) if plan["jobs"] else Text("the plan has no jobs", style="dim"))
    console.print()
    console.print(_peers(epoch["peers"]))
    for line in _refusals(epoch["peers"]):
        console.print(line)


def _headline(epoch: dict[str, Any]) -> Text:
    leader = epoch.get("leader")
    who = {
        "spreading": "tickets spread",
        "open": f"{short(leader)} is to publish a plan" if leader else "nobody has shown a ticket",
        "led": f"led by {short(leader)}" if leader else "led",
    }
    text = Text.assemble((f"epoch {epoch['epoch']}, term {epoch['term']}", "bold"), ": ")
    text.append(who.get(str(epoch["phase"]), str(epoch["phase"])))
    text.append(f"; the next begins in {seconds_text(epoch['ends_in_s'])}", style="dim")
    return text


def _jobs(jobs: list[dict[str, Any]]) -> Table:
    table = _table("job", "name", "generation", "updates/s", "clusters", "standbys")
    for job in jobs:
        clusters = " | ".join(
            " ".join(f"{stage['lo']}-{stage['hi'] - 1}:{short(stage['peer'])}" for stage in cluster)
            for cluster in job["clusters"]
        )
        table.add_row(
            *map(
                Text,
                (
                    str(job["job"])[:12],
                    str(job["name"]),
                    str(job["generation"] or "–"),
                    number(job["updates_per_s"]),
                    clusters or f"waits: {job['reason']}",
                    " ".join(short(peer) for peer in job["standbys"]),
                ),
            )
        )
    return table


def _peers(peers: list[dict[str, Any]]) -> Table:
    table = _table("peer", "is in", "obeys", "", "refused")
    for peer in peers:
        obeys = peer["obeys"]
        table.add_row(
            *map(
                Text,
                (
                    short(str(peer["peer"])),
                    f"{peer['epoch']}.{peer['term']}",
                    "–" if obeys is None else f"{obeys[0]}.{obeys[1]}",
                    "" if peer["agrees"] else "another plan",
                    str(len(peer["refused"]) or ""),
                ),
            )
        )
    return table


def _refusals(peers: list[dict[str, Any]]) -> list[Text]:
    """Each plan that was refused, why, and by how many."""
    found: dict[tuple[int, int, str, str], int] = {}
    for peer in peers:
        for each in peer["refused"]:
            key = (int(each["epoch"]), int(each["term"]), str(each["leader"]), str(each["why"]))
            found[key] = found.get(key, 0) + 1
    return [
        Text(f"{epoch}.{term} by {short(leader)} was refused by {count}: {why}", style="yellow")
        for (epoch, term, leader, why), count in sorted(found.items())
    ]


def _table(*titles: str) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for title in titles:
        table.add_column(title, overflow="fold")
    return table
