"""The pages of the documentation, and how to read what a test compares with the code."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from pathlib import Path

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
    return cells(checked(page, name).splitlines()[2:])


def rows_below(page: str, head: str) -> list[list[str]]:
    """Cells of the table that has this head."""
    _, _, rest = text_of(page).partition(f"\n{head}\n")
    assert rest, f"{page} has no table {head}"
    return cells(rest.split("\n\n")[0].splitlines()[1:])


def cells(lines: Iterable[str]) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def head(page: str, name: str) -> list[str]:
    return [cell.strip() for cell in checked(page, name).splitlines()[0].strip("|").split("|")]


def code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def amount(text: str) -> float:
    number, _, unit = text.partition(" ")
    return float(number) * UNITS.get(unit, 1)


def options_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {
        next(o for o in a.option_strings if o.startswith("--")): a
        for a in parser._actions
        if a.option_strings
    }
