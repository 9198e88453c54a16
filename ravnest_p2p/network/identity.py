"""Who a peer is: one Ed25519 key, whose public half is the peer id.

Problem: the Go daemon, the directory's signatures and the SDK have to agree on one identity, and a copied
or world-readable key file lets a stranger speak in this peer's name. Solution: one libp2p `PrivateKey`
protobuf on disk (key type 1, 64 bytes of data: seed and public key, the only form p2pd takes), mode 0600,
locked while a peer uses it. The peer id is the identity multihash of the public key, so any peer verifies
a signature from the id alone, without asking anybody.
"""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from functools import lru_cache
from io import BufferedReader
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ravnest_p2p.core.errors import ConfigError, RecordSignatureError
from ravnest_p2p.core.types import PeerId

if sys.platform != "win32":
    import fcntl

_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_VALUE_OF = {letter: value for value, letter in enumerate(_ALPHABET)}
_PRIVATE_HEAD = b"\x08\x01\x12\x40"
"""Protobuf: field 1 (key type) = 1 (Ed25519); field 2 (data), 64 bytes."""
_PEER_ID_HEAD = b"\x00\x24\x08\x01\x12\x20"
"""Identity multihash of 36 bytes: protobuf key type = 1, data of 32 bytes."""
_PEER_ID_BYTES = len(_PEER_ID_HEAD) + 32
_PEER_ID_CHARS = 52
SIGNATURE_BYTES = 64


class Identity:
    """A peer's signing key. Make one with `generate` or `load_or_create`."""

    def __init__(self, key: Ed25519PrivateKey, lock: BufferedReader | None = None) -> None:
        self._key = key
        self._public = key.public_key().public_bytes_raw()
        self._lock = lock
        self.peer_id: PeerId = peer_id_of(self._public)

    @classmethod
    def generate(cls) -> Identity:
        """A new random identity that lives in memory only."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load_or_create(cls, path: str | os.PathLike[str], *, exclusive: bool = True) -> Identity:
        """The identity in the file, which is created with mode 0600 where there is none.

        Args:
            path: the key file; missing parent folders are created with mode 0700.
            exclusive: keep the file locked until `release`, so that no second peer runs under this identity.
        Raises:
            ConfigError: others may read the file, another peer runs with it, or it is no Ed25519 key.
        """
        path = Path(path)
        if not path.exists():
            _write_new(path, cls.generate().private_bytes())
        try:
            file = open(path, "rb")  # noqa: SIM115 -- the lock lives as long as the descriptor
        except OSError as error:
            raise ConfigError(f"the identity file {path} cannot be read: {error.strerror}") from error
        try:
            _check_private(path, file)
            if exclusive:
                _lock(path, file)
            key = _parse_private(path, file.read(4096))
        except BaseException:
            file.close()
            raise
        if exclusive:
            return cls(key, file)
        file.close()
        return cls(key)

    def sign(self, message: bytes) -> bytes:
        """Ed25519 signature, 64 bytes; the same message always gives the same signature."""
        return self._key.sign(message)

    def private_bytes(self) -> bytes:
        """The libp2p `PrivateKey` protobuf (68 bytes), as the key file holds it."""
        return _PRIVATE_HEAD + self._key.private_bytes_raw() + self._public

    def release(self) -> None:
        """Let another peer use the key file. Dying releases it too."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __repr__(self) -> str:
        return f"Identity({self.peer_id})"


def peer_id_of(public_key: bytes) -> PeerId:
    """Base58 peer id (12D3Koo…) of a raw 32-byte Ed25519 public key."""
    data = _PEER_ID_HEAD + public_key
    number = int.from_bytes(data, "big")
    letters: list[str] = []
    while number:
        number, digit = divmod(number, 58)
        letters.append(_ALPHABET[digit])
    zeros = len(data) - len(data.lstrip(b"\x00"))
    return PeerId("1" * zeros + "".join(reversed(letters)))


@lru_cache(maxsize=4096)
def public_key_of(peer_id: PeerId) -> bytes:
    """Raw 32-byte public key that the peer id holds.

    Raises:
        RecordSignatureError: not the id of an Ed25519 key in its one canonical spelling.
    """
    if len(peer_id) != _PEER_ID_CHARS or not all(letter in _VALUE_OF for letter in peer_id):
        raise RecordSignatureError("not the peer id of an Ed25519 key (12D3Koo…)")
    number = 0
    for letter in peer_id:
        number = number * 58 + _VALUE_OF[letter]
    if number.bit_length() > 8 * _PEER_ID_BYTES:
        raise RecordSignatureError("not the peer id of an Ed25519 key (12D3Koo…)")
    data = number.to_bytes(_PEER_ID_BYTES, "big")
    if not data.startswith(_PEER_ID_HEAD) or peer_id_of(data[len(_PEER_ID_HEAD) :]) != peer_id:
        raise RecordSignatureError("not the peer id of an Ed25519 key (12D3Koo…)")
    return data[len(_PEER_ID_HEAD) :]


def is_peer_id(text: str) -> bool:
    """Whether the text is the canonical peer id of an Ed25519 key."""
    try:
        public_key_of(PeerId(text))
    except RecordSignatureError:
        return False
    return True


def verify(peer_id: PeerId, message: bytes, signature: bytes) -> bool:
    """Whether the peer signed the message; False too for an id that holds no Ed25519 key."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key_of(peer_id)).verify(signature, message)
    except (InvalidSignature, RecordSignatureError, ValueError):
        return False
    return True


def _write_new(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)  # unlike a rename, never replaces the key of a peer that was faster
        except FileExistsError:
            pass
    finally:
        os.unlink(temporary)


def _check_private(path: Path, file: BufferedReader) -> None:
    if os.name == "posix" and stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
        raise ConfigError(
            f"others on this computer can read the identity file {path}; close it with: chmod 600 {path}"
        )


def _lock(path: Path, file: BufferedReader) -> None:
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ConfigError(
            f"another peer is running with the identity file {path}; stop it, or give this peer its own file"
        ) from error


def _parse_private(path: Path, data: bytes) -> Ed25519PrivateKey:
    if len(data) == 68 and data.startswith(_PRIVATE_HEAD):
        key = Ed25519PrivateKey.from_private_bytes(data[4:36])
        if key.public_key().public_bytes_raw() == data[36:]:
            return key
    raise ConfigError(
        f"{path} holds no Ed25519 identity (libp2p PrivateKey, 68 bytes); "
        "move it away and a new one is created"
    )
