"""Random sequences of operations: stores against a dict."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from processor.errors import AlreadyExists, NotFound, VersionMismatch
from processor.store import Store, read_bytes
from processor.store.directory import DirectoryStore
from processor.store.memory import MemoryStore

# Few keys, so that they meet; none is a folder of another, which a folder-bucket can't hold.
KEYS = st.sampled_from(["a/b", "a-b", "a.b", "a/c/d", "a/c-d", "é", "z/z/z/z"])
DATA = st.binary(max_size=20)
PREFIXES = st.sampled_from(["", "a", "a/", "a/c", "z/", "nothing"])


class StoreMachine(RuleBasedStateMachine):
    """The model: per key, its versions and their contents, the newest last."""

    store: Store

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[str, list[tuple[str, bytes]]] = {}
        self.gone: list[tuple[str, str]] = []
        self.versions = self.store.capabilities.versions

    def _record(self, key: str, data: bytes) -> None:
        version = self.store.stat(key).version
        kept = self.model.setdefault(key, [])
        if not self.versions:
            self.gone += [(key, each) for each, _ in kept]
            kept.clear()
        kept.append((version, data))

    @rule(key=KEYS, data=DATA)
    def put(self, key: str, data: bytes) -> None:
        self.store.put(key, data)
        self._record(key, data)

    @rule(key=KEYS, data=DATA)
    def put_if_absent(self, key: str, data: bytes) -> None:
        if key in self.model:
            with pytest.raises(AlreadyExists):
                self.store.put(key, data, if_absent=True)
        else:
            self.store.put(key, data, if_absent=True)
            self._record(key, data)

    @precondition(lambda self: self.model)
    @rule(pick=st.data(), to=KEYS)
    def copy(self, pick: Any, to: str) -> None:
        key = pick.draw(st.sampled_from(sorted(self.model)))
        version, data = pick.draw(st.sampled_from(self.model[key]))
        self.store.copy(key, to, version=version)
        self._record(to, data)

    @precondition(lambda self: self.model)
    @rule(pick=st.data())
    def delete(self, pick: Any) -> None:
        key = pick.draw(st.sampled_from(sorted(self.model)))
        version, data = pick.draw(st.sampled_from(self.model[key]))
        self.store.delete(key, version=version)
        self.model[key].remove((version, data))
        self.gone.append((key, version))
        if not self.model[key]:
            del self.model[key]

    @precondition(lambda self: self.gone)
    @rule(pick=st.data())
    def name_what_is_gone(self, pick: Any) -> None:
        key, version = pick.draw(st.sampled_from(self.gone))
        if any(version == standing for standing, _ in self.model.get(key, [])):
            return  # a file system may give an inode and a time twice
        with pytest.raises(NotFound):
            self.store.get(key, version=version)
        if key in self.model and not self.versions:
            with pytest.raises(VersionMismatch):
                self.store.delete(key, version=version)
        else:
            self.store.delete(key, version=version)

    @rule(prefix=PREFIXES, after=KEYS)
    def list_a_part(self, prefix: str, after: str) -> None:
        found = [info.key for page in self.store.list(prefix, start_after=after) for info in page.objects]
        assert found == [key for key in sorted(self.model) if key.startswith(prefix) and key > after]

    @invariant()
    def everything_stands(self) -> None:
        found = [(info.key, info.size_bytes) for page in self.store.list("") for info in page.objects]
        assert found == [(key, len(kept[-1][1])) for key, kept in sorted(self.model.items())]
        for key, kept in self.model.items():
            assert read_bytes(self.store, key, limit_bytes=100) == kept[-1][1]
            for version, data in kept:
                assert read_bytes(self.store, key, version=version, limit_bytes=100) == data


class MemoryMachine(StoreMachine):
    """Memory with versions."""

    def __init__(self) -> None:
        self.store = MemoryStore(page_size=2)
        super().__init__()


class PlainMemoryMachine(StoreMachine):
    """Memory without."""

    def __init__(self) -> None:
        self.store = MemoryStore(versions=False, page_size=2)
        super().__init__()


class DirectoryMachine(StoreMachine):
    """A folder."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="dropbatch-model-"))
        self.store = DirectoryStore(self.folder, page_size=2)
        super().__init__()

    def teardown(self) -> None:
        shutil.rmtree(self.folder)


BOUNDED = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,  # two cores, shared
    suppress_health_check=[HealthCheck.too_slow],
)
TestMemoryModel = MemoryMachine.TestCase
TestMemoryModel.settings = BOUNDED
TestPlainMemoryModel = PlainMemoryMachine.TestCase
TestPlainMemoryModel.settings = BOUNDED
TestDirectoryModel = DirectoryMachine.TestCase
TestDirectoryModel.settings = settings(BOUNDED, max_examples=10)
