"""Leases on Modal's Dict, put to the contract that all lease stores keep: the real client on a
control plane of this machine, with replies lost on the wire and entries that expired."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from itertools import count
from typing import Any

import modal  # noqa: TID251  # the client under test
import pytest

from infra.leases import ModalDictLeases
from processor.errors import ForeignAuthority, StoreUnavailable
from processor.leases import LeaseStore
from processor.leases.authority import Authority
from processor.leases.lease import Leases
from processor.leases.memory import MemoryLeases
from processor.policy import Policy
from processor.store.memory import MemoryStore
from processor.testing import FaultPlan, ManualClock
from tests.contract.lease_contract import LeaseContract, LostRepliesContract, record
from tests.loopback import Loopback

_numbers = count(1)


@pytest.fixture(scope="module")
def loopback(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    """One control plane for this module, a Dict of its own for each test."""
    with Loopback(tmp_path_factory.mktemp("leases") / "modal") as running:
        yield running


@pytest.fixture
def name(loopback: Loopback) -> str:
    return f"leases-{next(_numbers)}"


def on(name: str) -> ModalDictLeases:
    return ModalDictLeases(modal.Dict.from_name(name, create_if_missing=True), name)


class _Faulty:
    """A Dict whose calls fail as planned, with what the client raises when it has given up."""

    def __init__(self, inner: modal.Dict, plan: FaultPlan) -> None:
        self._inner = inner
        self._plan = plan

    def put(self, key: str, value: bytes, *, skip_if_exists: bool = False) -> Any:
        return self._run("put", key, lambda: self._inner.put(key, value, skip_if_exists=skip_if_exists))

    def get(self, key: str) -> Any:
        return self._run("get", key, lambda: self._inner.get(key))

    def _run(self, operation: str, key: str, effect: Any) -> Any:
        try:
            return self._plan.run(operation, key, effect)
        except StoreUnavailable as error:
            raise modal.exception.ServiceError(str(error)) from None


class TestModalDictLeases(LeaseContract, LostRepliesContract):
    """The contract."""

    @pytest.fixture(autouse=True)
    def _own(self, name: str) -> None:
        self.name = name

    @pytest.fixture
    def leases(self) -> LeaseStore:
        return on(self.name)

    def lossy(self, plan: FaultPlan) -> LeaseStore:
        faulty: Any = _Faulty(modal.Dict.from_name(self.name, create_if_missing=True), plan)
        return ModalDictLeases(faulty, self.name)


@pytest.mark.parametrize("lost", [1, 4])
def test_replies_lost_on_the_wire_leave_one_owner(loopback: Loopback, name: str, lost: int) -> None:
    """The client repeats a lost put, finds its own entry and says no; after four it gives up."""
    leases = on(name)
    leases.read("hydrated")
    loopback.lose_reply("DictUpdate", times=lost)
    assert leases.create("lease/j/1", record("a")) == record("a")
    assert leases.create("lease/j/1", record("b")) == record("a")


def test_a_server_that_does_not_answer_is_unavailable(loopback: Loopback, name: str) -> None:
    """Nothing is claimed to be known, and later the same call works."""
    leases = on(name)
    leases.read("hydrated")
    loopback.refuse("DictGet", times=4)
    with pytest.raises(StoreUnavailable, match="does not answer"):
        leases.read("lease/j/1")
    loopback.refuse("DictUpdate", times=8)
    with pytest.raises(StoreUnavailable, match="does not answer"):
        leases.create("lease/j/1", record("a"))
    assert leases.create("lease/j/1", record("a")) == record("a")


def test_an_expired_lease_is_lost_by_its_holder(loopback: Loopback, name: str) -> None:
    """Modal forgot the entry: whoever held it commits nothing, and the job can be taken anew."""
    clock = ManualClock()
    leases = Leases(on(name), clock, lease_s=600, margin_s=30)
    held = leases.acquire("job-1", nonce="a")
    assert held is not None
    assert leases.acquire("job-1", nonce="b") is None
    loopback.expire(name, ["lease/job-1/1"])
    with pytest.raises(Exception, match="no longer knows this lease"):
        leases.renew(held)
    taken = leases.acquire("job-1", nonce="b")
    assert taken is not None
    assert taken.epoch == 1


def test_a_wiped_dict_is_refounded_after_the_longest_lease(loopback: Loopback, name: str) -> None:
    """A week without a tick: the authority is gone. Nobody works until old leases have run out."""
    clock, store, policy = ManualClock(), MemoryStore(), Policy(founding_grace_s=0)
    leases = on(name)
    nonces = iter("abcdef")
    first = Authority(store, leases, clock, policy, nonce=lambda: next(nonces)).check()
    loopback.expire(name)
    again = Authority(store, leases, clock, policy, nonce=lambda: next(nonces))
    with pytest.raises(StoreUnavailable, match="has lost its contents"):
        again.check()
    clock.advance(policy.lease_s + 3 * policy.margin_s)
    assert again.check().previous == first.id


def test_a_runner_with_another_backend_is_refused(name: str) -> None:
    """A desk with its own leases on a bucket that Modal works claims nothing, and says why."""
    clock, store, policy = ManualClock(), MemoryStore(), Policy(founding_grace_s=0)
    Authority(store, on(name), clock, policy, nonce=lambda: "a").check()
    desk = Authority(store, MemoryLeases(), clock, policy, nonce=lambda: "b")
    with pytest.raises(ForeignAuthority, match=f"modal-dict:{name}"):
        desk.check()
    assert Authority(store, on(name), clock, policy, nonce=lambda: "c").check().id == "a"


def test_two_instances_agree(name: str) -> None:
    """A container and a desk see the same leases, and time out each other's."""
    clock = ManualClock()
    container = Leases(on(name), clock, lease_s=60, margin_s=1)
    desk = Leases(on(name), clock, lease_s=60, margin_s=1)
    held = container.acquire("job-1", nonce="a")
    assert held is not None
    assert desk.acquire("job-1", nonce="b") is None
    clock.advance(timedelta(seconds=62).total_seconds())
    taken = desk.acquire("job-1", nonce="b")
    assert taken is not None
    assert taken.epoch == 2
