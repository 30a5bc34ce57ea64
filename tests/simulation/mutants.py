"""Each guard of the protocol, disabled in turn: a simulation that doesn't notice proves nothing.

A mutant patches one guard out of the core while it is open. Schedules are played until an
invariant is violated; how many that takes says how sharp the simulation is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from unittest.mock import patch

from handlers.ingest import archive
from handlers.ingest import handler as ingest
from processor import (
    claiming,
    commit,
    datasets,
    discard,
    dispatch,
    dropping,
    effects,
    execute,
    folders,
    history,
    ingestion,
    peek,
    publishing,
    recurring,
    settle,
    sweep,
    tick,
)
from processor import plan as planning
from processor import run as run_loop
from processor.attempt import Claim, Trying
from processor.clock import StoreClock
from processor.datasets import Frozen
from processor.errors import LeaseLost, StoreError
from processor.fanout import FanOut
from processor.inbox import Drop, Inbox, scan
from processor.keeping import KeptLease
from processor.layout import DATASETS_INBOX, dataset_record_key, manifest_key
from processor.leases.authority import Authority, Founding
from processor.leases.lease import Lease, Leases
from processor.machine import Machine
from processor.records import Manifest, TaskResult, dump
from processor.tick_report import TickReport
from tests.simulation import schedule as schedules
from tests.simulation.bucket import SimLeases, SimStore, WorldClock
from tests.simulation.fleet import POLICY
from tests.simulation.invariants import run
from tests.simulation.scenarios import SCENARIOS

Patch = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Mutant:
    """A guard, how it is disabled, and the scenarios in which its loss should show."""

    guard: str
    disable: Patch
    scenarios: tuple[str, ...] = ("emits", "reuploads")


@dataclass(frozen=True)
class Verdict:
    """Whether a mutant was caught, after how many schedules, and by which invariant."""

    guard: str
    schedules: int
    violation: str | None

    @property
    def caught(self) -> bool:
        return self.violation is not None


def hunt(mutant: Mutant, *, limit: int, first_seed: int = 0) -> Verdict:
    """Play the mutant's scenarios with the guard disabled, until something is violated."""
    with mutant.disable():
        for played in range(1, limit + 1):
            scenario = SCENARIOS[mutant.scenarios[played % len(mutant.scenarios)]]
            violations = run(scenario(first_seed + played, None))
            if violations:
                return Verdict(mutant.guard, played, violations[0].partition(":")[0])
    return Verdict(mutant.guard, limit, None)


def _swap(owner: Any, name: str, new: Any) -> Patch:
    return lambda: patch.object(owner, name, new)


# --- leases and clocks --------------------------------------------------------------------


def _believe_in_every_create(self: SimLeases, key: str, value: dict[str, Any]) -> dict[str, Any]:
    self._dict.asked(self._process, key, value)
    self._call("create", key, lambda: self._dict.put_if_absent(self._process, key, value))
    return dict(value)


def _inherit_from_anybody(
    self: Leases, job_id: str, *, nonce: str, heir_of: Lease | None = None
) -> Lease | None:
    lease = _acquire(self, job_id, nonce=nonce, heir_of=heir_of)
    if lease is None and heir_of is not None:
        return Lease(job_id, heir_of.epoch + 1, nonce, self._clock.now() + self._term)
    return lease


def _confirm_by_the_clock(self: Leases, lease: Lease) -> None:
    if not self.holds(lease):
        raise LeaseLost("it ran out")


def _over_without_margin(self: Leases, job_id: str, epoch: int, entry: dict[str, Any]) -> bool:
    kept, self._margin = self._margin, 0 * self._margin
    try:
        return _over(self, job_id, epoch, entry)
    finally:
        self._margin = kept


def _over_by_the_time_of_the_reply(self: Leases, job_id: str, epoch: int, entry: dict[str, Any]) -> bool:
    beat = self.store.read(f"beat/{job_id}/{epoch}/{entry['nonce']}") or entry
    over = datetime.fromisoformat(str(beat["until"])) + self._margin
    return bool(beat.get("released")) or self._clock.now() >= over


_acquire, _over = Leases.acquire, Leases._over


def _renew_after_a_while(self: FanOut, machine: Machine, kept: KeptLease, *args: Any, **named: Any) -> None:
    _begin(self, machine, kept, *args, **named)
    kept.due = machine.clock.monotonic() + machine.policy.renew_s


_begin = FanOut.__init__


def _start_what_is_not_stale(self: Any, pool: Any, report: TickReport, claims: list[Claim]) -> Any:
    return _start_all(self, pool, report, [] if self._wake.has_news else claims)


_start_all = run_loop._Loop._start_all

# --- the drop and its outcome -------------------------------------------------------------


def _commit_without_election(machine: Machine, lease: Lease, candidate: Manifest) -> Manifest:
    machine.stores.main.put(manifest_key(candidate.job_id), dump(candidate))
    return candidate


def _elect_without_lease(machine: Machine, lease: Lease, vote: dict[str, Any]) -> dict[str, Any]:
    machine.authority.check(max_age_s=machine.policy.authority_max_age_s)
    return machine.leases.store.create(f"commit/{lease.job_id}", vote)


def _in_time_before_only(machine: Machine, lease: Lease, when: str) -> None:
    if when == "before the commit":
        _in_time(machine, lease, when)


def _checked_at_any_time(self: Authority, *, max_age_s: float = 0.0, since: float = 0.0) -> Founding:
    return _check(self, max_age_s=max_age_s)


@contextmanager
def _vouch_for_nothing() -> Iterator[None]:
    with (
        patch.object(claiming, "_vouch", lambda *_: None),
        patch.object(Authority, "check", _checked_at_any_time),
    ):
        yield


_in_time, _check = commit._in_time, Authority.check


def _remove_whatever_stands(machine: Machine, drop: Drop) -> None:
    store = machine.stores.main
    assert isinstance(store, SimStore)
    for item in store._bucket.versions_of(drop.key):
        store.delete(drop.key, version=item.version)


def _settle_without_copy(machine: Machine, drop: Drop, manifest: Manifest, *, cancelling: bool) -> None:
    settle.remove(machine, drop)


def _discard_without_election(machine: Machine, lease: Lease, drop: Drop) -> None:
    settle.remove(machine, drop)


@contextmanager
def _settle_before_effects() -> Iterator[None]:
    """Effects come last, after the drop is gone."""

    def then(machine: Machine, drop: Drop, manifest: Manifest, *, cancelling: bool) -> None:
        _settle(machine, drop, manifest, cancelling=cancelling)
        effects.run_effects(machine, manifest)

    nothing = patch.object(dispatch, "run_effects", lambda *_: None)
    nor_there = patch.object(discard, "run_effects", lambda *_: None)
    with nothing, nor_there, patch.object(dispatch, "settle", then), patch.object(discard, "settle", then):
        yield


@contextmanager
def _peek_without_comparing() -> Iterator[None]:
    """Whatever stands is taken for the version that was listed."""

    def believe(store: Any, drop: Drop, **rest: Any) -> Any:
        seen = _peek(store, replace(drop, version=""), **rest)
        version = drop.version or seen.drop.version
        return replace(seen, drop=replace(seen.drop, version=version))

    with patch.object(claiming, "peek", believe), patch.object(dispatch, "peek", believe):
        yield


def _uncover_older_versions(machine: Machine, _report: Any, inbox: Inbox, busy: Any) -> None:
    for drop in inbox.superseded:
        if drop.job_id not in busy:
            with suppress(StoreError):
                discard.try_discard(machine, drop)


def _emit_under_a_new_name(machine: Machine, job: Any, *, parent: str, name: str) -> str:
    return _drop(machine, job, parent=parent, name=f"{name}-{machine.nonce()}")


_settle, _peek, _drop = settle.settle, peek.peek, dropping.drop

# --- plans, history, sweep ----------------------------------------------------------------


def _own_plan(trying: Trying, job: Any) -> Any:
    trying.plan = planning._make(trying, job)
    trying.begin()
    return trying.plan


def _adopt_anything(store: Any, past: Any, wanted: Any, *, limit_bytes: int, **_: Any) -> Any:
    found = {}
    for key in past.result_keys:
        result = history._read(store, key, TaskResult, limit_bytes)
        if result is not None and result.status == "done":
            found[result.index] = result
    return found


def _forget_attempts(store: Any, job_id: str, *, limit_bytes: int) -> Any:
    past = _read_history(store, job_id, limit_bytes=limit_bytes)
    past.attempts.clear()
    return past


def _sweep_at_once() -> AbstractContextManager[Any]:
    return patch.object(schedules, "POLICY", replace(POLICY, sweep_after_s=-3 * 86_400.0))


def _name_the_manifest_only(manifest: Manifest) -> set[str]:
    return {manifest_key(manifest.job_id)}


_read_history = history.read_history


# --- folders and nights --------------------------------------------------------------------


def _elect_and_ignore(self: Any, generation: int, ours: Frozen) -> Frozen:
    _elect_generation(self, generation, ours)
    return ours


@contextmanager
def _whatever_stands() -> Iterator[None]:
    """Files of a folder are read and copied by name."""

    def read(self: SimStore, key: str, *, version: str | None = None) -> Any:
        return get(self, key, version=None if key.startswith(DATASETS_INBOX) else version)

    def carry(self: SimStore, source: str, target: str, *, version: str | None = None) -> Any:
        return copy(self, source, target, version=None if source.startswith(DATASETS_INBOX) else version)

    get, copy = SimStore.get, SimStore.copy
    with patch.object(SimStore, "get", read), patch.object(SimStore, "copy", carry):
        yield


def _record_first(stores: Any, dataset: Any, wanted: Any, **rest: Any) -> None:
    key = dataset_record_key(dataset.name, dataset.fingerprint)
    stores.datasets.put(key, dump(dataset))
    _store_dataset(stores, dataset, wanted, **rest)


def _move_anywhere(machine: Machine, store: Any, key: str, pointer: Any) -> bool:
    store.put(key, dump(pointer))
    return True


def _by_the_hosts_clock(store: Any, *, keep: int, night: Any) -> Inbox:
    if not isinstance(night, bool):
        night = night.is_open(WorldClock(store._world, store._process).now())
    return scan(store, keep=keep, night=night)


_elect_generation = folders._Look._elect
_store_dataset = archive.store_dataset


@contextmanager
def _pointers(new: Any) -> Iterator[None]:
    with patch.object(ingestion, "advance", new), patch.object(publishing, "advance", new):
        yield


@contextmanager
def _both(name: str, new: Any) -> Iterator[None]:
    with patch.object(dispatch, name, new), patch.object(discard, name, new):
        yield


@contextmanager
def _removal(new: Any) -> Iterator[None]:
    with patch.object(settle, "remove", new), patch.object(discard, "remove", new):
        yield


def _one_tag() -> AbstractContextManager[Any]:
    from tests.simulation import launcher

    real = execute.execute
    return patch.object(launcher, "execute", lambda *a, **k: real(*a, **{**k, "tag": lambda: "00000000"}))


MUTANTS: tuple[Mutant, ...] = (
    Mutant("an unclear create is read back", _swap(SimLeases, "create", _believe_in_every_create)),
    Mutant("only the bearer inherits a lease", _swap(Leases, "acquire", _inherit_from_anybody)),
    Mutant(
        "a renewal looks for its successor", _swap(Leases, "confirm", _confirm_by_the_clock), ("sleepers",)
    ),
    Mutant("a taker waits for the margin", _swap(Leases, "_over", _over_without_margin)),
    Mutant(
        "a lease's end is compared with the time of asking",
        _swap(Leases, "_over", _over_by_the_time_of_the_reply),
        ("slow",),
    ),
    Mutant(
        "a lease that ran out starts nothing", _swap(FanOut, "__init__", _renew_after_a_while), ("crowd",)
    ),
    Mutant("a lease that ran out begins nothing", _swap(Trying, "_must_hold", lambda *_: None), ("poison",)),
    Mutant("time is the store's", _swap(StoreClock, "sync", lambda *_, **__: None)),
    Mutant(
        "an authority is founded upon fresh answers",
        _swap(Authority, "_still_true", lambda *_: None),
        ("foreigner",),
    ),
    Mutant("the authority is checked", _swap(Authority, "check", lambda *_, **__: None), ("foreigner",)),
    Mutant("the outcome is elected", _swap(dispatch, "commit", _commit_without_election)),
    Mutant("the lease is asked before the election", _swap(commit, "_elect", _elect_without_lease)),
    Mutant("a late answer elects nothing", _swap(commit, "_in_time", _in_time_before_only), ("wiped",)),
    Mutant(
        "what was claimed is started",
        _swap(run_loop._Loop, "_start_all", _start_what_is_not_stale),
        ("throng",),
    ),
    Mutant("a lease is vouched for", _vouch_for_nothing, ("wiped",)),
    Mutant(
        "a standing manifest wins over an election",
        _swap(commit, "_may_be_forgotten", lambda *_: False),
        ("wiped",),
    ),
    Mutant("a settled drop is not run", _swap(dispatch, "standing", lambda *_: None), ("wiped", "emits")),
    Mutant("an elected outcome is enacted", _swap(dispatch, "_elected", lambda *_: None)),
    Mutant("a discard is elected", lambda: _both("discard", _discard_without_election), ("reuploads",)),
    Mutant("deletion is by version", lambda: _removal(_remove_whatever_stands), ("reuploads",)),
    Mutant("the drop is copied before it goes", _swap(dispatch, "settle", _settle_without_copy)),
    Mutant("effects come before settling", _settle_before_effects),
    Mutant("a replaced drop is not begun", _peek_without_comparing, ("reuploads",)),
    Mutant(
        "what was read before the claim is read again",
        _swap(claiming, "_still_true", lambda peeked, _: peeked),
        ("reuploads",),
    ),
    Mutant(
        "older versions go first",
        _swap(tick, "_discard_superseded", _uncover_older_versions),
        ("reuploads",),
    ),
    Mutant("an emission's id follows from its parent", _swap(effects, "drop", _emit_under_a_new_name)),
    Mutant("the plan is elected", _swap(dispatch, "elect_plan", _own_plan)),
    Mutant("adopted results have the task's hash", _swap(dispatch, "adopt", _adopt_anything), ("wiped",)),
    Mutant("begun attempts are counted", _swap(dispatch, "read_history", _forget_attempts), ("poison",)),
    Mutant(
        "the renewed lease commits",
        _swap(Trying, "lease", property(lambda self: self.claim.lease)),
        ("calm",),
    ),
    Mutant("the sweep waits 25 hours", _sweep_at_once, ("sweeps",)),
    Mutant("the sweep spares what is named", _swap(sweep, "_named", _name_the_manifest_only)),
    Mutant("an execution has its own tag", _one_tag),
    Mutant(
        "a folder's generation is elected", _swap(folders._Look, "_elect", _elect_and_ignore), ("folders",)
    ),
    Mutant("a folder must be quiet", _swap(datasets, "quiet_s", lambda *_: 1e9), ("folders",)),
    Mutant("files are read by version", _whatever_stands, ("folders",)),
    Mutant("a version's record comes last", _swap(ingest, "store_dataset", _record_first), ("folders",)),
    Mutant(
        "a training's id follows from its version",
        _swap(ingestion, "drop", _emit_under_a_new_name),
        ("folders",),
    ),
    Mutant("a pointer moves forward only", lambda: _pointers(_move_anywhere), ("folders",)),
    Mutant("the night is asked by the store's clock", _swap(tick, "scan", _by_the_hosts_clock), ("nights",)),
    Mutant(
        "a due time's id follows from its template",
        _swap(recurring, "drop", _emit_under_a_new_name),
        ("nights",),
    ),
)
"""Every guard on which a promise rests."""
