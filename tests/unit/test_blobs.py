"""The blob store: whole blobs only, within its capacity, across restarts."""

import hashlib
import os
import stat
from pathlib import Path

import pytest

from ravnest_p2p.core.errors import BlobError, BlobStoreError
from ravnest_p2p.network.blobs import BlobStore, check_hash


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "store", 1000)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_bytes_come_back_by_their_hash(store: BlobStore):
    name = store.put_bytes(b"hello")
    assert name == sha(b"hello")
    assert store.has(name)
    assert store.size(name) == 5
    assert store.path(name).read_bytes() == b"hello"
    assert stat.S_IMODE(store.path(name).stat().st_mode) == 0o600
    assert store.put_bytes(b"hello") == name
    assert store.used_bytes == 5


def test_a_file_is_copied(store: BlobStore, tmp_path: Path):
    (tmp_path / "file").write_bytes(b"x" * 300)
    name = store.put_file(tmp_path / "file")
    (tmp_path / "file").unlink()
    assert store.path(name).read_bytes() == b"x" * 300


@pytest.mark.parametrize("name", ["", "../" * 20 + "a" * 4, "A" * 64, "g" * 64, "a" * 63, None, b"a" * 64])
def test_only_a_hash_is_a_name(name: object, store: BlobStore):
    with pytest.raises(BlobError):
        check_hash(name)
    with pytest.raises(BlobError):
        store.path(name)


@pytest.mark.parametrize("written", [b"hell", b"hellO"])
def test_wrong_size_or_hash_leaves_nothing(store: BlobStore, tmp_path: Path, written: bytes):
    with store.writer(sha(b"hello"), 5) as writer:
        writer.write(written)
        with pytest.raises(BlobError):
            writer.finish()
    assert not store.has(sha(b"hello"))
    assert files(tmp_path) == []
    assert store.used_bytes == 0


def test_more_than_promised_is_refused_at_once(store: BlobStore):
    with store.writer(sha(b"hello"), 5) as writer:
        writer.write(b"hell")
        with pytest.raises(BlobError):
            writer.write(b"o!")
        assert writer.offset == 4


def test_a_write_is_invisible_until_it_is_finished_and_room_is_reserved(store: BlobStore, tmp_path: Path):
    with store.writer(sha(b"a" * 900), 900) as writer:
        writer.write(b"a" * 450)
        assert not store.has(sha(b"a" * 900))
        with pytest.raises(BlobStoreError):
            store.put_bytes(b"b" * 200)
    assert store.used_bytes == 0
    assert files(tmp_path) == []
    store.put_bytes(b"b" * 200)


def test_the_longest_unused_goes_first(store: BlobStore):
    a, b, c = (store.put_bytes(letter * 300) for letter in (b"a", b"b", b"c"))
    store.path(a)
    store.put_bytes(b"d" * 300)
    assert [store.has(name) for name in (a, b, c)] == [True, False, True]
    assert not (store._folder / b[:2] / b).exists()


def test_pinned_blobs_stay(store: BlobStore):
    a, b = store.put_bytes(b"a" * 400), store.put_bytes(b"b" * 400)
    store.pin("job1", a)
    store.pin("job2", a)
    store.pin("job2", b)
    with pytest.raises(BlobStoreError, match="200 too few"):
        store.put_bytes(b"c" * 400)
    assert store.has(a)
    assert store.has(b)
    store.unpin("job2")
    store.put_bytes(b"c" * 400)
    assert store.has(a)
    assert not store.has(b)
    store.unpin("job1", a)
    store.put_bytes(b"d" * 400)
    assert not store.has(a)


def test_nothing_is_evicted_for_what_cannot_fit(store: BlobStore):
    a = store.put_bytes(b"a" * 400)
    with pytest.raises(BlobStoreError):
        store.put_bytes(b"b" * 1001)
    assert store.has(a)


def test_a_restart_keeps_blobs_and_their_order_and_drops_leftovers(tmp_path: Path):
    first = BlobStore(tmp_path, 1000)
    a, b = first.put_bytes(b"a" * 300), first.put_bytes(b"b" * 300)
    os.utime(first.path(a), (2_000_000_000, 2_000_000_000))
    cut_off = first.writer(sha(b"c" * 300), 300)
    cut_off.write(b"c" * 100)
    cut_off._file.flush()
    (tmp_path / "ab").mkdir(exist_ok=True)
    (tmp_path / "ab" / "stray").write_bytes(b"not a blob")

    second = BlobStore(tmp_path, 1000)
    assert second.hashes() == (b, a)
    assert second.used_bytes == 600
    assert list((tmp_path / "tmp").iterdir()) == []
    cut_off._file.close()


def test_a_file_removed_by_hand_is_noticed(store: BlobStore):
    name = store.put_bytes(b"hello")
    store.path(name).unlink()
    with pytest.raises(BlobError):
        store.path(name)
    assert not store.has(name)


def test_an_empty_blob(store: BlobStore):
    name = store.put_bytes(b"")
    assert store.path(name).read_bytes() == b""
