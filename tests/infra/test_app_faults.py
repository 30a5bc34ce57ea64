"""What goes wrong on Modal, done to the real app: machines lost, taken away and overlapping,
dispatchers cut off, leases forgotten. Nothing is lost, nothing is visible twice."""

from __future__ import annotations

from collections.abc import Iterator

import modal  # the client under test
import pytest

from processor.records import Manifest, Outcome
from tests.infra.deployed import APP, Deployed, deadline, deployed
from tests.support.moto import SerialMotoServer
from tests.support.rendering import slow_graph

TASKS = 4


@pytest.fixture(autouse=True)
def _deadline() -> Iterator[None]:
    with deadline(180):
        yield


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, moto: SerialMotoServer) -> Iterator[Deployed]:
    """One deployment for all: what one test does to its containers is no other's concern."""
    root = tmp_path_factory.mktemp("faults")
    # Tasks that take long, and leave the CPU to those who recover from their loss.
    with deployed(root, moto.url, lease_s=20, engine_args=["--pause-s", "0.05"]) as running:
        yield running


def begin(here: Deployed, name: str, nodes: int = 40) -> str:
    """Drop a job of four slow tasks and have it claimed; its key."""
    axis = {"0.color": list(range(TASKS))}
    key = here.put_job(name, {"workflow": slow_graph(nodes, size=16), "matrix": axis})
    assert here.tick()["claimed"] == 1
    return key


def check_done(here: Deployed, key: str) -> Manifest:
    """One manifest, every task once, all files there, the drop settled."""
    manifest = here.manifests()[key]
    assert manifest.outcome is Outcome.DONE, manifest.error
    assert [result.index for result in manifest.tasks] == list(range(TASKS))
    assert all(len(result.files) == 1 for result in manifest.tasks)
    assert not here.keys("inbox/")
    settled = [settled for settled in here.keys("done/") if manifest.job_id in settled]
    assert len(settled) == 1
    here.check_whole()
    return manifest


@pytest.mark.parametrize("how", ["kill", "preempt", "overlap"])
def test_a_renderer_lost_in_the_middle_of_a_task(here: Deployed, how: str) -> None:
    """Its tasks restart elsewhere; with overlap both executions end, under keys of their own."""
    key = begin(here, f"renderer-{how}")
    victim = here.loopback.busy("Renderer", timeout_s=30)
    if how == "kill":
        victim.kill()
    else:
        victim.preempt(grace_s=30, overlap=how == "overlap")
    victim.wait_exited(60)
    here.run_until_empty()
    manifest = check_done(here, key)
    assert len(manifest.attempts) == 1, "the dispatcher never noticed"


def test_a_preempted_dispatcher_goes_on_with_the_same_claims(here: Deployed) -> None:
    """It gives the leases of all its calls back in the grace; their restart takes the next epoch at once."""
    keys = [begin(here, f"dispatch-preempted-{number}") for number in range(2)]
    here.loopback.busy("Renderer", timeout_s=30)
    victim = here.loopback.busy("Dispatcher")
    assert len(victim.inputs) == 2
    victim.preempt(grace_s=30)
    assert victim.wait_exited(60).returncode == 0, "not one of them kept it until it was killed"
    here.loopback.wait_until(lambda: not here.keys("inbox/"), 60, "the restart settles both, without a tick")
    manifests = [check_done(here, key) for key in keys]
    assert len(here.loopback.containers("Dispatcher")) >= 2
    for manifest in manifests:
        assert manifest.attempt.startswith("3-"), "tick, first dispatcher, its restart"


def test_a_killed_dispatchers_job_is_found_when_its_lease_has_run_out(here: Deployed) -> None:
    """Nobody could say anything: the restart finds a lease that stands, and a later tick one that ran out."""
    key = begin(here, "dispatch-killed")
    here.loopback.busy("Renderer", timeout_s=30)
    here.loopback.busy("Dispatcher").kill()
    here.run_until_empty()
    manifest = check_done(here, key)
    assert len(manifest.attempts) == 2


def test_a_duplicate_dispatch_of_one_claim_stops(here: Deployed) -> None:
    """Two deliveries of the same claims: one runs the job, the other finds it taken."""
    key = begin(here, "delivered-twice")
    first = here.loopback.busy("Dispatcher")
    job_id = next(iter(here.leased_jobs()))
    claim = here.claim_of(key, job_id)
    dispatch = modal.Cls.from_name(APP, "Dispatcher")().run
    assert dispatch.spawn([claim]).get(timeout=60) == {job_id: None}
    here.run_until_empty()
    manifest = check_done(here, key)
    assert len(manifest.attempts) == 1
    assert first.returncode is None


def test_a_lease_that_modal_forgets_is_lost_and_taken_anew(here: Deployed) -> None:
    """The holder notices at its next renewal, commits nothing, and a tick begins again."""
    key = begin(here, "lease-forgotten", nodes=120)
    here.loopback.busy("Renderer", timeout_s=30)
    job_id = next(iter(here.leased_jobs()))
    entries = here.leases()
    here.loopback.expire("dropbatch-leases", [entry for entry in entries if job_id in entry])
    here.run_until_empty()
    check_done(here, key)
    assert "no longer knows this lease" in here.loopback.logs(tail_bytes=1_000_000)


def test_a_running_job_is_cancelled(here: Deployed) -> None:
    """The request reaches the dispatcher, the stop the workers; what was finished is kept."""
    key = begin(here, "cancelled", nodes=600)
    here.loopback.busy("Renderer", timeout_s=30)
    job_id = next(iter(here.leased_jobs()))
    here.store.put(f"inbox/control/cancel/{job_id}", b"")
    here.run_until_empty()
    manifest = here.manifests()[key]
    assert manifest.outcome is Outcome.CANCELLED
    assert len(manifest.tasks) < TASKS
