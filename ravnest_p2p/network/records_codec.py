"""Values of `core.types` to plain msgpack/JSON data and back, believing nothing.

Problem: bytes of a stranger have to become `Plan` or `JobSpec` without a field too many, a NaN, a list
where a number belongs, a hash that is really a path, or an int that looks like a bool. Solution: decode
by the type's own annotations, with no conversion at all (only a whole number may stand for a float) and
with one rule for every kind of leaf; ids are checked by their `NewType`. A dataclass travels as a map
with exactly its fields (a field with a default may be missing), a tuple and a `NamedTuple` as a list, an
enum as its value.
"""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import lru_cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from ravnest_p2p.core.errors import RecordFormatError
from ravnest_p2p.core.types import BlobHash, JobId, PeerId
from ravnest_p2p.network.identity import is_peer_id

T = TypeVar("T")

MAX_TEXT_CHARS = 1024
MAX_ITEMS = 65536
MAX_INT = 2**63 - 1
_HEX_64 = re.compile(r"[0-9a-f]{64}")


def is_sha256_hex(text: str) -> bool:
    """Whether the text is 64 lower-case hex digits, hence safe as a file name."""
    return _HEX_64.fullmatch(text) is not None


_IDS: dict[Any, Callable[[str], bool]] = {
    PeerId: is_peer_id,
    JobId: is_sha256_hex,
    BlobHash: is_sha256_hex,
}


def to_plain(value: object) -> Any:
    """The value as maps, lists, strings and numbers."""
    if is_dataclass(value):
        return {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, (tuple, list)):
        return [to_plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return value
    raise TypeError(f"{type(value).__name__} does not travel")


def from_plain(kind: type[T], plain: object) -> T:
    """The plain data as a value of the type.

    Raises:
        RecordFormatError: anything that is not exactly the type; the message names the place.
    """
    value: T = _decoder(kind)(plain, kind.__name__)
    return value


Decoder = Callable[[Any, str], Any]


def _decoder(kind: Any) -> Decoder:
    return _cached_decoder(kind)


@lru_cache(maxsize=256)
def _cached_decoder(kind: Any) -> Decoder:
    if kind in _IDS:
        return _id_decoder(kind)
    if kind in _LEAVES:
        return _LEAVES[kind]
    origin = get_origin(kind)
    if origin is tuple:
        return _tuple_decoder(get_args(kind))
    if origin in (Union, types.UnionType):
        return _optional_decoder(get_args(kind))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _enum_decoder(kind)
    if isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return _named_tuple_decoder(kind)
    if is_dataclass(kind):
        return _dataclass_decoder(typing.cast(type, kind))
    raise TypeError(f"no decoder for {kind}")


def _refuse(where: str, wanted: str) -> typing.NoReturn:
    raise RecordFormatError(f"{where} must be {wanted}")


def _int(plain: Any, where: str) -> int:
    if type(plain) is not int or not 0 <= plain <= MAX_INT:
        _refuse(where, "a whole number from 0 to 2^63-1")
    return plain


def _float(plain: Any, where: str) -> float:
    if type(plain) not in (int, float) or abs(plain) > 1e300 or not math.isfinite(plain):
        _refuse(where, "a finite number")
    return float(plain)


def _str(plain: Any, where: str) -> str:
    if type(plain) is not str or len(plain) > MAX_TEXT_CHARS or not plain.isprintable():
        _refuse(where, f"printable text of at most {MAX_TEXT_CHARS} characters")
    return plain


def _bool(plain: Any, where: str) -> bool:
    if type(plain) is not bool:
        _refuse(where, "true or false")
    return plain


_LEAVES: dict[Any, Decoder] = {int: _int, float: _float, str: _str, bool: _bool}


def _id_decoder(kind: Any) -> Decoder:
    def decode(plain: Any, where: str) -> str:
        if type(plain) is not str or not _IDS[kind](plain):
            _refuse(where, f"a {kind.__name__}")
        return plain

    return decode


def _enum_decoder(kind: type[Enum]) -> Decoder:
    by_value = {member.value: member for member in kind}

    def decode(plain: Any, where: str) -> Enum:
        if type(plain) is not str or plain not in by_value:
            _refuse(where, "one of " + ", ".join(map(str, by_value)))
        return by_value[plain]

    return decode


def _list(plain: Any, where: str) -> list[Any]:
    if type(plain) is not list or len(plain) > MAX_ITEMS:
        _refuse(where, f"a list of at most {MAX_ITEMS}")
    return plain


def _tuple_decoder(arguments: tuple[Any, ...]) -> Decoder:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        item = _decoder(arguments[0])
        return lambda plain, where: tuple(
            item(one, f"{where}[{index}]") for index, one in enumerate(_list(plain, where))
        )
    return _fixed_decoder(tuple(_decoder(argument) for argument in arguments), tuple)


def _fixed_decoder(items: tuple[Decoder, ...], build: Callable[[Any], Any]) -> Decoder:
    def decode(plain: Any, where: str) -> Any:
        if len(_list(plain, where)) != len(items):
            _refuse(where, f"a list of {len(items)}")
        return build(item(one, where) for item, one in zip(items, plain, strict=True))

    return decode


def _named_tuple_decoder(kind: Any) -> Decoder:
    hints = get_type_hints(kind)
    return _fixed_decoder(tuple(_decoder(hints[name]) for name in kind._fields), kind._make)


def _optional_decoder(arguments: tuple[Any, ...]) -> Decoder:
    kinds = [argument for argument in arguments if argument is not type(None)]
    if len(kinds) != 1 or len(arguments) != 2:
        raise TypeError("only an optional may be a union")
    inner = _decoder(kinds[0])
    return lambda plain, where: None if plain is None else inner(plain, where)


def _dataclass_decoder(kind: type) -> Decoder:
    hints = get_type_hints(kind)
    decoders = {field.name: _decoder(hints[field.name]) for field in fields(kind)}
    required = [
        field.name for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING
    ]

    def decode(plain: Any, where: str) -> Any:
        if type(plain) is not dict:
            _refuse(where, "a map")
        for name in plain:
            if name not in decoders:
                raise RecordFormatError(f"{where} has an unknown field {str(name)[:40]!r}")
        for name in required:
            if name not in plain:
                raise RecordFormatError(f"{where} lacks the field {name!r}")
        return kind(**{name: decoders[name](value, f"{where}.{name}") for name, value in plain.items()})

    return decode
