"""The documentation says what the code does: commands, flags, settings, messages, links.

A table below `<!-- checked: NAME -->` is compared with the code by the test of that name.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import ravnest_p2p as rn
from ravnest_p2p.cli import output, ravnest, ravnestd
from ravnest_p2p.client import request
from ravnest_p2p.core import compression
from ravnest_p2p.core.errors import RavnestError
from ravnest_p2p.core.optimizers import OPTIMIZERS
from ravnest_p2p.daemon.config import DEFAULT_LISTEN
from tests.unit.doc_pages import PAGES, ROOT, code, options_of, table, text_of


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
