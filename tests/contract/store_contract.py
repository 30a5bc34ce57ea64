"""What `processor.store.protocol.Store` promises, as tests that any store can be put to.

class TestMine(StoreContract):
    expected = Capabilities(versions=True, put_if_absent=False)

    @pytest.fixture
    def store(self) -> Store: ...   # empty; pages of 3 objects
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import ClassVar

import pytest

from processor.errors import AlreadyExists, InvalidKey, NotFound, StoreError, TooLarge, VersionMismatch
from processor.store import Capabilities, ObjectInfo, Store, read_bytes

WORKERS = 5
LIMIT_BYTES = 1 << 20

ODD_KEYS = [
    "with space/and  two.json",
    "ünïcödé/日本語/🎨.png",
    "combining/e\u0301.txt",
    "plus+percent%20%2F&amp;<tag>='\"`$;#?*[]{}|^~!@,:.txt",
    "back\\slash.txt",
    "dots/..a/b../...c",
    ".hidden/.DS_Store",
    "-rf/--help",
    "a" * 255,
    "/".join(["long " + "n" * 90] * 9),
]
BAD_KEYS = [
    "",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "a/../b",
    "./a",
    "a\nb",
    "a\x00b",
    "a\x7f",
    "\ud800",
    "x" * 1025,
]


def read(store: Store, key: str, *, version: str | None = None) -> bytes:
    return read_bytes(store, key, version=version, limit_bytes=LIMIT_BYTES)


def listed(
    store: Store, prefix: str = "", *, versions: bool = False, start_after: str = ""
) -> list[ObjectInfo]:
    pages = store.list(prefix, versions=versions, start_after=start_after)
    return [info for page in pages for info in page.objects]


def keys(store: Store, prefix: str = "", *, start_after: str = "") -> list[str]:
    return [info.key for info in listed(store, prefix, start_after=start_after)]


def race(work: list[threading.Thread]) -> None:
    for thread in work:
        thread.start()
    for thread in work:
        thread.join(timeout=30)
        assert not thread.is_alive()


class StoreContract:
    """What every store promises. Subclass one of the classes below as well for each
    capability, and give a `store` fixture."""

    expected: ClassVar[Capabilities]

    def hide(self, store: Store, key: str) -> None:
        """Delete by name alone, as a person with another client does."""
        raise TypeError("the subclass knows how")

    def test_capabilities_are_found(self, store: Store) -> None:
        """What the probe says is what the server does."""
        assert store.capabilities == self.expected
        assert keys(store, "state/probe/") == []

    def test_what_is_put_is_read(self, store: Store) -> None:
        """Put, stat, get and list agree on one object."""
        before = datetime.now(UTC) - timedelta(seconds=5)
        put = store.put("inbox/job.json", b"{}", media_type="application/json")
        info = store.stat("inbox/job.json")
        with store.get("inbox/job.json") as download:
            assert download.body.read() == b"{}"
            assert download.info == info
        assert (info.key, info.size_bytes, info.latest, info.delete_marker) == (
            "inbox/job.json",
            2,
            True,
            False,
        )
        assert info.version
        assert put.version in ((info.version,) if self.expected.versions else (info.version, ""))
        assert (put.key, put.size_bytes) == ("inbox/job.json", 2)
        assert before < info.modified < datetime.now(UTC) + timedelta(seconds=5)
        assert info.modified.tzinfo is UTC
        (entry,) = listed(store)
        assert (entry.key, entry.size_bytes) == (info.key, info.size_bytes)
        assert entry.version == (info.version if self.expected.versions else "")

    def test_stat_and_get_by_version(self, store: Store) -> None:
        """The version that stands can be named; one that never was can't."""
        store.put("k", b"one")
        version = store.stat("k").version
        assert store.stat("k", version=version).size_bytes == 3
        assert read(store, "k", version=version) == b"one"
        for made_up in ("never", "0", "00000000-0000-0000-0000-000000000000"):
            with pytest.raises(NotFound):
                store.stat("k", version=made_up)
            with pytest.raises(NotFound):
                store.get("k", version=made_up)

    def test_a_missing_key_is_not_found(self, store: Store) -> None:
        """Absence is NotFound for every operation that reads, also below an object."""
        store.put("stands", b"x")
        for key in ("missing", "missing/below", "stan", "stands.not"):
            with pytest.raises(NotFound):
                store.stat(key)
            with pytest.raises(NotFound):
                store.get(key)
            with pytest.raises(NotFound):
                store.copy(key, "elsewhere")
        assert keys(store) == ["stands"]

    def test_a_put_replaces_whole(self, store: Store) -> None:
        """After a put the new content stands, with another version."""
        store.put("k", b"first, and longer")
        first = store.stat("k")
        store.put("k", b"second")
        assert read(store, "k") == b"second"
        assert store.stat("k").version != first.version

    def test_an_empty_object(self, store: Store) -> None:
        """Zero bytes are an object (markers have no more)."""
        store.put("inbox/datasets/cats/_READY", b"")
        assert store.stat("inbox/datasets/cats/_READY").size_bytes == 0
        assert read(store, "inbox/datasets/cats/_READY") == b""

    def test_put_a_file(self, store: Store, tmp_path: Path) -> None:
        """A file is streamed; it stays as it was."""
        content = bytes(range(256)) * 3000
        (tmp_path / "picture.png").write_bytes(content)
        info = store.put("out/picture.png", tmp_path / "picture.png", media_type="image/png")
        assert info.size_bytes == len(content)
        assert read(store, "out/picture.png") == content
        assert (tmp_path / "picture.png").read_bytes() == content

    def test_read_in_pieces(self, store: Store) -> None:
        """A body is a file: read in pieces, then to its end, then empty."""
        content = bytes(range(256)) * 2000
        store.put("big", content)
        with store.get("big") as download:
            pieces = [download.body.read(7), download.body.read(300_000), download.body.read()]
            assert b"".join(pieces) == content
            assert download.body.read(1) == b""

    def test_an_unread_body_can_be_closed(self, store: Store) -> None:
        """Nobody has to read what they opened."""
        store.put("big", b"x" * 500_000)
        with store.get("big") as download:
            assert download.body.read(1) == b"x"
        assert store.stat("big").size_bytes == 500_000

    def test_read_bytes_is_bounded(self, store: Store) -> None:
        """An object larger than the caller allows is not read."""
        store.put("k", b"12345")
        assert read_bytes(store, "k", limit_bytes=5) == b"12345"
        with pytest.raises(TooLarge):
            read_bytes(store, "k", limit_bytes=4)

    @pytest.mark.parametrize("key", ODD_KEYS, ids=range(len(ODD_KEYS)))
    def test_odd_keys_go_everywhere(self, store: Store, key: str) -> None:
        """What people call their files survives put, list, get, copy and delete."""
        store.put(key, b"odd")
        assert read(store, key) == b"odd"
        assert keys(store) == [key]
        assert keys(store, key) == [key]
        store.copy(key, "copied", version=store.stat(key).version)
        assert read(store, "copied") == b"odd"
        store.delete(key, version=store.stat(key).version)
        assert keys(store) == ["copied"]

    @pytest.mark.parametrize("key", BAD_KEYS, ids=range(len(BAD_KEYS)))
    def test_bad_keys_are_refused(self, store: Store, key: str) -> None:
        """What breaks the rules of names, or would leave the root, gets no further."""
        store.put("stands", b"")
        with pytest.raises(InvalidKey):
            store.put(key, b"")
        with pytest.raises(InvalidKey):
            store.stat(key)
        with pytest.raises(InvalidKey):
            store.get(key)
        with pytest.raises(InvalidKey):
            store.copy(key, "elsewhere")
        with pytest.raises(InvalidKey):
            store.copy("stands", key)
        with pytest.raises(InvalidKey):
            store.delete(key, version="v")
        assert keys(store) == ["stands"]

    def test_listing_is_sorted_as_bytes(self, store: Store) -> None:
        """In the order of UTF-8 bytes over the whole key, across pages."""
        names = ["a-b", "a.b", "a/b", "a/c/d", "a/c-d", "a0", "b/🎨", "b/z", "b/é", "B", "日本/1", "~"]
        for name in reversed(names):
            store.put(name, b"")
        assert keys(store) == sorted(names, key=str.encode)

    def test_listing_by_prefix(self, store: Store) -> None:
        """A prefix is a beginning of keys, not a folder."""
        for name in ("inbox/a", "inbox/ab/c", "inbox/b", "inbox-old/a", "inbo", "z"):
            store.put(name, b"")
        assert keys(store, "inbox/") == ["inbox/a", "inbox/ab/c", "inbox/b"]
        assert keys(store, "inbox/a") == ["inbox/a", "inbox/ab/c"]
        assert keys(store, "inbox") == ["inbox-old/a", "inbox/a", "inbox/ab/c", "inbox/b"]
        for nothing in ("inbox/c", "inbox/a/", "nowhere/", "/", "inbox//", "../"):
            assert keys(store, nothing) == []

    def test_listing_from_a_key_on(self, store: Store) -> None:
        """`start_after` leaves out all keys up to it, whether it stands or not."""
        names = ["a", "b/1", "b/2", "b/2-x", "b/2.y", "b/2z", "c"]
        for name in names:
            store.put(name, b"")
        for after in ["a", "b", "b/", "b/1", "b/1zzz", "b/2", "b/2-", "b/2z", "b0", "c", "d"]:
            assert keys(store, start_after=after) == [each for each in names if each > after]
            assert keys(store, "b/", start_after=after) == [
                each for each in names if each > after and each.startswith("b/")
            ]

    def test_listing_comes_in_pages_with_the_stores_date(self, store: Store) -> None:
        """Every page has its date; an empty listing is one page."""
        (empty,) = store.list("nothing/")
        assert empty.objects == []
        assert empty.date.tzinfo is UTC
        for number in range(7):
            store.put(f"many/{number}", b"")
        pages = list(store.list("many/"))
        assert len(pages) >= 3
        assert [len(page.objects) for page in pages[:2]] == [3, 3]
        assert pages[0].date <= pages[-1].date

    def test_a_listing_can_be_left(self, store: Store) -> None:
        """A reader may stop after one page, and the store may change in between."""
        for number in range(9):
            store.put(f"many/{number}", b"")
        pages = store.list("many/")
        first = next(pages)
        store.delete("many/8", version=store.stat("many/8").version)
        assert [info.key for info in first.objects] == ["many/0", "many/1", "many/2"]
        assert [info.key for info in next(pages).objects] == ["many/3", "many/4", "many/5"]
        pages.close()  # type: ignore[attr-defined]

    def test_delete_what_stands(self, store: Store) -> None:
        """Only the named key goes; again is no error, and neither is what never was."""
        for name in ("a/b/c", "a/b/d", "a/e"):
            store.put(name, b"x")
        version = store.stat("a/b/c").version
        store.delete("a/b/c", version=version)
        assert keys(store) == ["a/b/d", "a/e"]
        store.delete("a/b/c", version=version)
        store.delete("never/was", version=version)
        with pytest.raises(NotFound):
            store.stat("a/b/c")
        store.put("a/b/c", b"again")
        assert read(store, "a/b/c") == b"again"

    def test_copy(self, store: Store) -> None:
        """A copy is a new object of the same bytes, and replaces what stood."""
        store.put("from", b"content", media_type="text/plain")
        store.put("done/to", b"older")
        info = store.copy("from", "done/to", version=store.stat("from").version)
        assert (info.key, info.size_bytes) == ("done/to", 7)
        standing = store.stat("done/to").version
        assert info.version in ((standing,) if self.expected.versions else (standing, ""))
        assert read(store, "done/to") == b"content"
        assert read(store, "from") == b"content"

    def test_readers_see_old_or_new(self, store: Store) -> None:
        """While two contents take turns, no reader sees a part of one, or a mixture."""
        contents = [b"a" * 70_000, b"b" * 40_000]
        store.put("k", contents[0])
        finished = threading.Event()
        seen: list[bytes] = []

        def watch() -> None:
            while not finished.is_set():
                seen.append(read(store, "k"))

        watcher = threading.Thread(target=watch)
        watcher.start()
        for number in range(12):
            store.put("k", contents[number % 2])
        finished.set()
        watcher.join(timeout=30)
        assert seen
        assert all(each in contents for each in seen)

    def test_threads_share_a_store(self, store: Store) -> None:
        """Many at once, each on its own keys: all arrive."""
        names = [f"w/{number:02}" for number in range(20)]
        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(lambda name: store.put(name, name.encode()), names))
            contents = list(pool.map(lambda name: read(store, name), names))
            assert contents == [name.encode() for name in names]
            assert keys(store, "w/") == names
            list(pool.map(lambda name: store.delete(name, version=store.stat(name).version), names))
        assert keys(store) == []

    def test_nothing_shows_a_secret(self, store: Store) -> None:
        """Neither the URL nor what a log would show has credentials."""
        for shown in (store.url, repr(store), str(vars(store))):
            assert "never-show" not in shown
        assert "://" in store.url


class VersionsContract(StoreContract):
    """What is promised besides where every put makes a version."""

    def test_versions_stay_until_they_are_deleted(self, store: Store) -> None:
        """Older versions are read and listed, newest first, and go one by one."""
        first, second, third = (store.put("k", data).version for data in (b"1", b"2", b"3"))
        store.put("other", b"")
        assert read(store, "k", version=first) == b"1"
        found = [(info.key, info.version, info.latest) for info in listed(store, versions=True)]
        assert found[0] == ("k", third, True)
        assert set(found[1:3]) == {("k", second, False), ("k", first, False)}
        assert found[3][0] == "other"
        store.delete("k", version=second)
        assert {info.version for info in listed(store, "k", versions=True)} == {first, third}
        store.delete("k", version=third)
        assert read(store, "k") == b"1"

    def test_a_named_version_is_copied(self, store: Store) -> None:
        """Moving a drop moves the version that was read, not what arrived since."""
        read_version = store.put("inbox/job.json", b"read").version
        store.put("inbox/job.json", b"re-upload")
        store.copy("inbox/job.json", "done/job.json", version=read_version)
        store.delete("inbox/job.json", version=read_version)
        assert read(store, "done/job.json") == b"read"
        assert read(store, "inbox/job.json") == b"re-upload"

    def test_a_delete_marker_hides(self, store: Store) -> None:
        """Hidden is not found, older versions stay readable, and a put brings it back."""
        first = store.put("k", b"1").version
        self.hide(store, "k")
        with pytest.raises(NotFound):
            store.stat("k")
        with pytest.raises(NotFound):
            store.get("k")
        with pytest.raises(NotFound):
            store.copy("k", "elsewhere")
        assert keys(store) == []
        assert read(store, "k", version=first) == b"1"
        marker, older = listed(store, versions=True)
        assert (marker.delete_marker, marker.latest, older.version) == (True, True, first)
        with pytest.raises(NotFound):
            store.stat("k", version=marker.version)
        store.put("k", b"2")
        assert read(store, "k") == b"2"
        store.delete("k", version=marker.version)
        assert [info.delete_marker for info in listed(store, versions=True)] == [False, False]

    def test_versions_of_a_key_may_span_pages(self, store: Store) -> None:
        """None is lost or listed twice at a page's end."""
        made = {store.put("k", b"%d" % number).version for number in range(8)}
        made.add(store.put("l", b"").version)
        found = [info.version for info in listed(store, versions=True)]
        assert len(found) == 9
        assert set(found) == made


class NoVersionsContract(StoreContract):
    """What is promised where a put replaces."""

    def test_without_versions_a_re_upload_is_not_deleted(self, store: Store) -> None:
        """Deleting what was read changes nothing once something else stands there."""
        store.put("inbox/job.json", b"read")
        version = store.stat("inbox/job.json").version
        store.put("inbox/job.json", b"re-upload")
        with pytest.raises(VersionMismatch):
            store.delete("inbox/job.json", version=version)
        assert read(store, "inbox/job.json") == b"re-upload"
        for gone in (store.stat, store.get):
            with pytest.raises(NotFound):
                gone("inbox/job.json", version=version)
        with pytest.raises(NotFound):
            store.copy("inbox/job.json", "done/job.json", version=version)
        assert keys(store) == ["inbox/job.json"]

    def test_without_versions_what_stands_is_listed(self, store: Store) -> None:
        """Asked for versions, a store without them lists each object once, nameless."""
        store.put("k", b"1")
        store.put("k", b"2")
        assert [(info.key, info.version) for info in listed(store, versions=True)] == [("k", "")]

    def test_without_versions_hidden_is_gone(self, store: Store) -> None:
        """Deleting by name leaves nothing."""
        store.put("k", b"1")
        self.hide(store, "k")
        with pytest.raises(NotFound):
            store.stat("k")
        assert listed(store, versions=True) == []


class PutIfAbsentContract(StoreContract):
    """What is promised besides where put-if-absent is."""

    def test_put_if_absent(self, store: Store) -> None:
        """The first stands; a later one changes nothing and is told so."""
        store.put("k", b"first", if_absent=True)
        with pytest.raises(AlreadyExists):
            store.put("k", b"second", if_absent=True)
        assert read(store, "k") == b"first"
        self.hide(store, "k")
        store.put("k", b"third", if_absent=True)
        assert read(store, "k") == b"third"

    def test_five_workers_race_for_a_key(self, store: Store) -> None:
        """Exactly one wins each of several races, and its content stands."""
        for round_number in range(4):
            key = f"race/{round_number}"
            start = threading.Barrier(WORKERS)
            won: list[bytes] = []

            def work(
                name: bytes, key: str = key, start: threading.Barrier = start, won: list[bytes] = won
            ) -> None:
                start.wait(timeout=10)
                try:
                    store.put(key, name, if_absent=True)
                except AlreadyExists:
                    return
                won.append(name)

            race([threading.Thread(target=work, args=(b"worker %d" % each,)) for each in range(WORKERS)])
            assert won == [read(store, key)]


class NoPutIfAbsentContract(StoreContract):
    """What is promised where put-if-absent isn't."""

    def test_put_if_absent_without_the_capability(self, store: Store) -> None:
        """Where it isn't promised, nobody may believe that it succeeded as asked."""
        store.put("k", b"first")
        for key in ("k", "other"):
            with pytest.raises(StoreError):
                store.put(key, b"second", if_absent=True)
        assert keys(store) == ["k"]
        assert read(store, "k") == b"first"
