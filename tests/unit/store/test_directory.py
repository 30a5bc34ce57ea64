"""DirectoryStore and the tree beneath it: hostile trees, other programs, crashes."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from processor.errors import (
    AccessDenied,
    AlreadyExists,
    ConfigError,
    InvalidKey,
    NotFound,
    StoreUnavailable,
    VersionMismatch,
)
from processor.store import aside, read_bytes
from processor.store.directory import DirectoryStore
from processor.testing import ManualClock


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "bucket").mkdir()
    return tmp_path / "bucket"


@pytest.fixture
def store(root: Path) -> DirectoryStore:
    return DirectoryStore(root)


def keys(store: DirectoryStore, prefix: str = "") -> list[str]:
    return [info.key for page in store.list(prefix) for info in page.objects]


def read(store: DirectoryStore, key: str) -> bytes:
    return read_bytes(store, key, limit_bytes=1 << 20)


class TestRoot:
    """Where a bucket may be."""

    def test_it_must_be_there(self, tmp_path: Path) -> None:
        """A mistyped or unmounted path must not look like an empty bucket."""
        with pytest.raises(ConfigError, match="mkdir"):
            DirectoryStore(tmp_path / "typo")
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(ConfigError):
            DirectoryStore(tmp_path / "file")
        assert DirectoryStore(tmp_path / "made/deep", create=True).url == (tmp_path / "made/deep").as_uri()

    def test_a_root_that_vanishes(self, store: DirectoryStore, root: Path) -> None:
        """An unmounted disk is unavailable; its objects are not absent."""
        root.rename(root.with_name("elsewhere"))
        for call in (
            lambda: store.stat("k"),
            lambda: store.get("k"),
            lambda: store.put("k", b""),
            lambda: store.delete("k", version="v"),
            lambda: next(store.list("")),
        ):
            with pytest.raises(StoreUnavailable, match="mounted"):
                call()

    def test_it_may_be_reached_by_a_symlink(self, root: Path) -> None:
        """The root itself is its owner's choice."""
        root.with_name("link").symlink_to(root)
        store = DirectoryStore(root.with_name("link"))
        store.put("k", b"x")
        assert (root / "k").read_bytes() == b"x"

    def test_pages_have_the_injected_date(self, root: Path) -> None:
        """The store's clock is a given one."""
        clock = ManualClock()
        store = DirectoryStore(root, clock=clock)
        clock.advance(3600)
        assert next(store.list("")).date == clock.now()


class TestSymlinks:
    """None is followed, listed or written through."""

    @pytest.fixture
    def outside(self, tmp_path: Path, root: Path) -> Path:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "secret").write_bytes(b"not yours")
        (root / "inbox").mkdir()
        (root / "inbox/file").symlink_to(outside / "secret")
        (root / "inbox/folder").symlink_to(outside)
        (root / "inbox/loop").symlink_to(root / "inbox")
        (root / "inbox/dangling").symlink_to(outside / "nothing")
        (root / "link").symlink_to(outside)
        return outside

    @pytest.mark.parametrize(
        "key", ["inbox/file", "inbox/folder/secret", "link/secret", "inbox/loop/x", "inbox/dangling"]
    )
    def test_reading(self, store: DirectoryStore, outside: Path, key: str) -> None:
        """What a symlink leads to isn't there."""
        for call in (store.stat, store.get, lambda key: store.copy(key, "copied")):
            with pytest.raises(NotFound):
                call(key)
        store.delete(key, version="v")
        assert keys(store) == []
        assert keys(store, key.rpartition("/")[0] + "/") == []
        assert sorted(each.name for each in outside.iterdir()) == ["secret"]

    @pytest.mark.parametrize("key", ["inbox/folder/new", "link/new", "link/deep/new"])
    def test_writing_through_a_folder(self, store: DirectoryStore, outside: Path, key: str) -> None:
        """Refused with the reason; nothing appears outside."""
        with pytest.raises(InvalidKey, match="symlink"):
            store.put(key, b"x")
        assert sorted(each.name for each in outside.iterdir()) == ["secret"]

    def test_writing_onto_one_replaces_it(self, store: DirectoryStore, outside: Path) -> None:
        """The link goes, what it led to stays."""
        store.put("inbox/file", b"mine")
        assert read(store, "inbox/file") == b"mine"
        assert (outside / "secret").read_bytes() == b"not yours"
        store.put("inbox/dangling", b"mine")
        assert not (outside / "nothing").exists()


class TestOddTrees:
    """What else may lie in a folder."""

    def test_our_own_folder_is_not_listed(self, store: DirectoryStore, root: Path) -> None:
        """Temp files and what is aside are no objects, nor can they be named."""
        store.put("k", b"")
        store.delete("k", version=store.stat("k").version)
        (root / ".dropbatch/tmp/half").write_bytes(b"half")
        assert (root / ".dropbatch").is_dir()
        assert keys(store) == keys(store, ".drop") == keys(store, ".dropbatch/") == []
        for key in (".dropbatch/tmp/half", ".dropbatch", ".DropBatch/x"):
            with pytest.raises(InvalidKey):
                store.get(key)
            with pytest.raises(InvalidKey):
                store.put(key, b"")

    def test_junk_is_listed(self, store: DirectoryStore, root: Path) -> None:
        """What counts as junk is the inbox's decision."""
        (root / "inbox/x.dropbatch").mkdir(parents=True)
        for name in (".DS_Store", "._a.png", "Thumbs.db", "x.dropbatch/.dropbatch"):
            (root / "inbox" / name).write_bytes(b"")
        assert keys(store) == [
            "inbox/.DS_Store", "inbox/._a.png", "inbox/Thumbs.db", "inbox/x.dropbatch/.dropbatch",
        ]  # fmt: skip

    def test_neither_files_nor_folders(self, store: DirectoryStore, root: Path) -> None:
        """A pipe is no object, and looking at it doesn't hang."""
        os.mkfifo(root / "pipe")
        assert keys(store) == []
        for call in (store.stat, store.get):
            with pytest.raises(NotFound):
                call("pipe")

    def test_names_that_are_no_keys(self, store: DirectoryStore, root: Path) -> None:
        """A newline or bytes that aren't UTF-8 in a name: passed over, not stumbled over."""
        (root / "new\nline").write_bytes(b"")
        Path(os.fsdecode(os.fsencode(root) + b"/latin-\xe9.txt")).write_bytes(b"")
        (root / "good").write_bytes(b"")
        assert keys(store) == ["good"]

    def test_a_name_that_is_too_long(self, store: DirectoryStore) -> None:
        """255 bytes a name is the file system's limit, not the store's; the error says so."""
        with pytest.raises(InvalidKey, match="258 bytes, at most 255"):
            store.put("inbox/" + "é" * 129, b"")

    def test_a_file_in_the_way_of_a_folder(self, store: DirectoryStore) -> None:
        """S3 can hold `a` and `a/b`; a folder can't, and says so."""
        store.put("a", b"x")
        with pytest.raises(InvalidKey, match="in the way"):
            store.put("a/b", b"")
        store.put("c/d", b"")
        for if_absent in (False, True):
            with pytest.raises(InvalidKey, match="in the way"):
                store.put("c", b"", if_absent=if_absent)
        assert keys(store) == ["a", "c/d"]

    def test_any_time_a_file_may_have(self, store: DirectoryStore, root: Path) -> None:
        """`touch -d` reaches far."""
        (root / "old").write_bytes(b"")
        os.utime(root / "old", ns=(-(10**18), -(10**18)))
        assert store.stat("old").modified.year == 1938
        assert store.stat("old", version=store.stat("old").version).key == "old"

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_what_may_not_be_read(self, store: DirectoryStore, root: Path) -> None:
        """A closed folder doesn't stop the scan; a closed file is denied, not absent."""
        for key in ("closed/k", "names-only/k", "names-only/below/k", "open/k"):
            store.put(key, b"")
        (root / "closed").chmod(0)
        (root / "names-only").chmod(0o444)
        (root / "open/k").chmod(0)
        try:
            assert keys(store) == ["open/k"]
            with pytest.raises(AccessDenied):
                store.get("open/k")
        finally:
            for name in ("closed", "names-only"):
                (root / name).chmod(0o755)

    @pytest.mark.parametrize("call", ["stat", "scandir"])
    def test_what_may_not_be_looked_at(
        self, store: DirectoryStore, root: Path, call: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Is passed over; a disk that fails is no empty folder."""
        store.put("a/k", b"")
        store.put("b/k", b"")
        real, shut = getattr(os, call), (root / "b").stat().st_ino

        def failing_with(number: int) -> Callable[..., Any]:
            def fail(what: str | int, **where: Any) -> Any:
                folder = what if isinstance(what, int) else where.get("dir_fd")
                if folder is not None and os.fstat(folder).st_ino == shut:
                    raise OSError(number, os.strerror(number))
                return real(what, **where)

            return fail

        monkeypatch.setattr(os, call, failing_with(errno.EACCES))
        assert keys(store) == ["a/k"]
        monkeypatch.setattr(os, call, failing_with(errno.EIO))
        with pytest.raises(StoreUnavailable):
            keys(store)


class TestWriting:
    """Whole or not at all."""

    def test_a_failed_put_leaves_nothing(self, store: DirectoryStore, root: Path, tmp_path: Path) -> None:
        """Neither an object nor a temp file."""
        with pytest.raises(FileNotFoundError):
            store.put("k", tmp_path / "nothing")
        store.put("k", b"first")
        with pytest.raises(AlreadyExists):
            store.put("k", b"second", if_absent=True)
        assert list((root / ".dropbatch/tmp").iterdir()) == []

    def test_the_inode_is_new(self, store: DirectoryStore, root: Path) -> None:
        """Someone reading the old file goes on reading it."""
        store.put("k", b"old")
        with store.get("k") as download:
            store.put("k", b"new")
            assert download.body.read() == b"old"

    def test_files_are_a_persons_files(self, store: DirectoryStore, root: Path) -> None:
        """Readable as the umask says, not locked up as temp files are."""
        mask = os.umask(0o022)
        try:
            store.put("k", b"")
        finally:
            os.umask(mask)
        assert (root / "k").stat().st_mode & 0o777 == 0o644

    def test_in_place_changes_are_other_versions(self, store: DirectoryStore, root: Path) -> None:
        """Another program appends: what was read is not what stands."""
        store.put("inbox/job.json", b"{")
        version = store.stat("inbox/job.json").version
        with (root / "inbox/job.json").open("ab") as file:
            file.write(b"}")
        with pytest.raises(NotFound):
            store.get("inbox/job.json", version=version)
        with pytest.raises(VersionMismatch):
            store.delete("inbox/job.json", version=version)
        assert read(store, "inbox/job.json") == b"{}"

    def test_empty_folders_go_but_not_peoples(self, store: DirectoryStore, root: Path) -> None:
        """The two upper levels stay: people drop into `inbox/nightly` again."""
        for key in ("inbox/datasets/cats/sub/1.png", "inbox/nightly/a.json", "top.json"):
            store.put(key, b"")
            store.delete(key, version=store.stat(key).version)
        assert (root / "inbox/nightly").is_dir()
        assert (root / "inbox/datasets").is_dir()
        assert not (root / "inbox/datasets/cats").exists()

    def test_a_folder_that_goes_while_it_is_written_to(self, store: DirectoryStore) -> None:
        """Puts and deletes in one folder at the same time: no put is lost."""
        finished = threading.Event()

        def churn() -> None:
            while not finished.is_set():
                store.put("a/b/c/other", b"")
                store.delete("a/b/c/other", version=store.stat("a/b/c/other").version)

        churning = threading.Thread(target=churn)
        churning.start()
        try:
            for number in range(40):
                key = f"a/b/c/{number}"
                store.put(key, b"x")
                store.delete(key, version=store.stat(key).version)
        finally:
            finished.set()
            churning.join(timeout=30)
        assert keys(store) == []


class TestAside:
    """Deleting only what was meant, and crashes amid it."""

    def test_what_arrives_amid_a_delete_stays(self, store: DirectoryStore, root: Path) -> None:
        """A re-upload between the look and the rename is linked back."""
        store.put("k", b"read")
        version = store.stat("k").version
        looks = 0

        def matches(found: os.stat_result) -> bool:
            nonlocal looks
            looks += 1
            matched = f"{found.st_mtime_ns}-{found.st_size}-{found.st_ino}" == version
            if looks == 1:
                store.put("k", b"re-upload")
            return matched

        assert not aside.remove_if(store._tree, "k", matches)
        assert looks == 2
        assert read(store, "k") == b"re-upload"
        assert list((root / ".dropbatch/aside").iterdir()) == []

    def test_nothing_newer_is_overwritten(self, store: DirectoryStore) -> None:
        """While one re-upload was aside, another came: the newest stands."""
        store.put("k", b"read")
        version = store.stat("k").version
        looks = 0

        def matches(found: os.stat_result) -> bool:
            nonlocal looks
            looks += 1
            matched = f"{found.st_mtime_ns}-{found.st_size}-{found.st_ino}" == version
            store.put("k", b"re-upload %d" % looks)
            return matched

        assert not aside.remove_if(store._tree, "k", matches)
        assert read(store, "k") == b"re-upload 2"

    def test_a_crash_amid_a_delete_is_mended(self, store: DirectoryStore, root: Path) -> None:
        """The file that was aside stands again after a later listing, though not at once:
        the deletion might still be under way."""
        store.put("inbox/jobs/job.json", b"precious")

        def die(found: os.stat_result) -> bool:
            if (root / "inbox/jobs/job.json").exists():
                return True
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            aside.remove_if(store._tree, "inbox/jobs/job.json", die)
        assert keys(store) == []
        self._age(root, 61)
        assert keys(store) == ["inbox/jobs/job.json"]
        assert read(store, "inbox/jobs/job.json") == b"precious"
        assert list((root / ".dropbatch/aside").iterdir()) == []

    def test_a_mended_crash_overwrites_nothing(self, store: DirectoryStore, root: Path) -> None:
        """If something newer stands by then, it stays."""
        self.test_a_crash_amid_a_delete_is_mended(store, root)
        (root / ".dropbatch/aside/abc").write_bytes(b"older")
        (root / ".dropbatch/aside/abc.key").write_bytes(b"inbox/jobs/job.json")
        self._age(root, 61)
        assert keys(store) == ["inbox/jobs/job.json"]
        assert read(store, "inbox/jobs/job.json") == b"precious"
        assert list((root / ".dropbatch/aside").iterdir()) == []

    def test_notes_of_nobody_do_no_harm(self, store: DirectoryStore, root: Path, tmp_path: Path) -> None:
        """A forged note leads nowhere outside, and stops no listing."""
        store.put("k", b"")
        folder = root / ".dropbatch/aside"
        folder.mkdir(exist_ok=True)
        for name, key in (("a", b"../../outside"), ("b", b"\xff"), ("c", b"")):
            (folder / name).write_bytes(b"forged")
            (folder / f"{name}.key").write_bytes(key)
        self._age(root, 61)
        assert keys(store) == ["k"]
        assert not (tmp_path / "outside").exists()

    def test_old_drafts_go(self, store: DirectoryStore, root: Path) -> None:
        """Half-written temp files of a killed process are removed after a day, not before."""
        store.put("k", b"")
        for name, age_s in (("old", 90_000), ("new", 3600)):
            (root / ".dropbatch/tmp" / name).write_bytes(b"half")
            stamp = (root / "k").stat().st_mtime - age_s
            os.utime(root / ".dropbatch/tmp" / name, (stamp, stamp))
        assert keys(store) == ["k"]
        assert [each.name for each in (root / ".dropbatch/tmp").iterdir()] == ["new"]

    @staticmethod
    def _age(root: Path, seconds: float) -> None:
        for path in (root / ".dropbatch/aside").iterdir():
            stamp = path.stat().st_mtime - seconds
            os.utime(path, (stamp, stamp))


def test_a_large_folder_streams(root: Path) -> None:
    """The first page of many folders reads only the first of them."""
    store = DirectoryStore(root, page_size=10)
    for folder in ("a", "b"):
        (root / folder).mkdir()
        for number in range(30):
            (root / folder / f"{number:02}").write_bytes(b"")
    pages = store.list("")
    next(pages)
    (root / "b/late").write_bytes(b"")
    assert [info.key for page in pages for info in page.objects][-1] == "b/late"
