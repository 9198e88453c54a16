"""What a peer remembers of jobs survives its death, a cut file, and a flood of strangers' jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from ravnest_p2p.core.ballot import Adopted
from ravnest_p2p.core.errors import BlobStoreError
from ravnest_p2p.core.types import BlobHash, Fence, Generation, JobId, JobPhase, PeerId, Piece
from ravnest_p2p.daemon.jobbook import MAX_JOBS, JobBook
from ravnest_p2p.network.blobs import BlobStore

JOB = JobId("a" * 64)


def piece(batches_done: int, lo: int = 0, blob: str = "") -> Piece:
    return Piece(lo, lo + 1, batches_done, batches_done, BlobHash(blob or f"{batches_done:064x}"), ())


def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    book = JobBook(tmp_path / "state.json")
    book.adopted = Adopted(Fence(7, 2), PeerId("leader"), "hash")
    entry = book.entry(JOB)
    entry.sealed, entry.outcome, entry.reason = b"\x00record", JobPhase.DONE, "why"
    entry.lineage.append((Generation(7, 2, "tag"), 40))
    book.add_piece(JOB, piece(10))

    again = JobBook(tmp_path / "state.json")
    assert again.adopted == book.adopted
    assert again.jobs == book.jobs


def test_the_two_newest_rounds_are_kept(tmp_path: Path) -> None:
    book = JobBook(tmp_path / "state.json")
    assert book.add_piece(JOB, piece(10)) == []
    assert book.add_piece(JOB, piece(20)) == []
    assert book.add_piece(JOB, piece(20, lo=1)) == []
    assert book.add_piece(JOB, piece(30)) == [piece(10)]
    assert {p.batches_done for p in book.entry(JOB).pieces} == {20, 30}
    assert book.add_piece(JOB, piece(10)) == [piece(10)], "a late copy of an old round is dropped at once"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"adopted": [1], "jobs": {}}', '{"jobs": {"x": {}}}'])
def test_an_unreadable_file_is_set_aside(tmp_path: Path, text: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(text)
    book = JobBook(path)
    assert book.jobs == {}
    assert book.adopted is None
    assert path.with_suffix(".broken").read_text() == text
    book.save()
    assert JobBook(path).jobs == {}


def test_every_prefix_of_the_file_still_opens(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    book = JobBook(path)
    book.add_piece(JOB, piece(10))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert JobBook(path).jobs == {}, length


def test_a_flood_of_jobs_never_displaces_an_open_one(tmp_path: Path) -> None:
    book = JobBook(tmp_path / "state.json")
    for number in range(MAX_JOBS):
        assert book.has_room()
        book.entry(JobId(f"{number:064x}"))
    assert not book.has_room()
    assert len(book.jobs) == MAX_JOBS
    book.entry(JobId(f"{3:064x}")).outcome = JobPhase.DONE
    assert book.has_room(), "a job that is over makes room"
    assert JobId(f"{3:064x}") not in book.jobs


def test_pieces_that_the_store_has_lost_are_forgotten_and_the_others_pinned(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs", 1000)
    held = store.put_bytes(b"x" * 600)
    book = JobBook(tmp_path / "state.json")
    book.entry(JOB).pieces = [piece(10, blob=held), piece(20)]
    book.restore(store)
    assert [p.blob for p in book.entry(JOB).pieces] == [held]
    with pytest.raises(BlobStoreError):
        store.put_bytes(b"y" * 600)
    assert store.has(held), "pinned: not evicted for newer blobs"
