from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from libp2p.crypto.ed25519 import Ed25519PublicKey
from libp2p.peer.id import ID

from ravnest_p2p.core.errors import ConfigError, RecordSignatureError
from ravnest_p2p.core.types import PeerId
from ravnest_p2p.network.identity import Identity, is_peer_id, public_key_of, verify


def test_created_once_and_loaded_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "key"
    first = Identity.load_or_create(path)
    first.release()
    second = Identity.load_or_create(path)
    assert second.peer_id == first.peer_id
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o077 == 0
    assert path.read_bytes() == first.private_bytes()
    assert path.read_bytes()[:4] == b"\x08\x01\x12\x40"
    assert len(path.read_bytes()) == 68
    assert [entry.name for entry in path.parent.iterdir()] == ["key"]


def test_peer_id_is_that_of_libp2p() -> None:
    identity = Identity.generate()
    public = public_key_of(identity.peer_id)
    assert ID.from_pubkey(Ed25519PublicKey.from_bytes(public)).to_base58() == identity.peer_id
    assert identity.peer_id.startswith("12D3Koo")
    assert identity.private_bytes()[-32:] == public


def test_a_file_that_others_can_read_is_refused_with_the_fix(tmp_path: Path) -> None:
    path = tmp_path / "key"
    Identity.load_or_create(path).release()
    path.chmod(0o640)
    with pytest.raises(ConfigError, match=f"chmod 600 {path}"):
        Identity.load_or_create(path)


@pytest.mark.parametrize(
    "data", [b"", b"rubbish", b"\x08\x01\x12\x20" + bytes(32), b"\x08\x01\x12\x40" + bytes(64)]
)
def test_a_file_without_an_ed25519_key_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(data)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="Ed25519"):
        Identity.load_or_create(path)


def test_two_peers_cannot_use_one_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    first = Identity.load_or_create(path)
    with pytest.raises(ConfigError, match="another peer"):
        Identity.load_or_create(path)
    assert Identity.load_or_create(path, exclusive=False).peer_id == first.peer_id
    other = subprocess.run(
        [
            sys.executable,
            "-c",
            f"from ravnest_p2p.network.identity import Identity\nIdentity.load_or_create({str(path)!r})",
        ],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert "another peer is running" in other.stderr
    first.release()
    Identity.load_or_create(path).release()


def test_only_the_signer_and_the_message_verify() -> None:
    one, two = Identity.generate(), Identity.generate()
    signature = one.sign(b"message")
    assert signature == one.sign(b"message")
    assert verify(one.peer_id, b"message", signature)
    assert not verify(two.peer_id, b"message", signature)
    assert not verify(one.peer_id, b"messagE", signature)
    assert not verify(one.peer_id, b"message", signature[:-1])
    assert not verify(one.peer_id, b"message", b"")
    assert not verify(PeerId("nobody"), b"message", signature)


def test_only_canonical_ed25519_ids_are_peer_ids() -> None:
    peer = Identity.generate().peer_id
    assert is_peer_id(peer)
    assert not is_peer_id("1" + peer)
    assert not is_peer_id(peer[:-1])
    assert not is_peer_id("z" * 52)
    assert not is_peer_id("QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N")
    assert not is_peer_id(peer.replace(peer[-1], "0"))
    assert not is_peer_id("1" * 1_000_000)
    with pytest.raises(RecordSignatureError):
        public_key_of(PeerId(""))


def test_the_key_is_not_shown() -> None:
    identity = Identity.generate()
    assert repr(identity) == f"Identity({identity.peer_id})"
