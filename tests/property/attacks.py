"""All named attacks on packages; `test_hostile_packages` runs each in a process of its own."""

from __future__ import annotations

from tests.property import attacks_arguments, attacks_evaluation, attacks_files, attacks_form, attacks_meaning
from tests.property.attack_base import Attack

_TABLES = (
    attacks_form.TEXTS,
    attacks_form.FORMS,
    attacks_form.OPS,
    attacks_form.REFERENCES,
    attacks_form.WRITES,
    attacks_meaning.BOMBS,
    attacks_meaning.WORK,
    attacks_meaning.LIES,
    attacks_arguments.ARGUMENTS,
    attacks_evaluation.FORMS,
    attacks_evaluation.DISAGREEMENTS,
    attacks_evaluation.PLACES,
    attacks_files.PLACES,
    attacks_files.HEADERS,
)
ATTACKS: dict[str, Attack] = {name: attack for table in _TABLES for name, attack in table.items()}
"""Every attack by its name."""

assert len(ATTACKS) == sum(len(table) for table in _TABLES), "two attacks of one name"
