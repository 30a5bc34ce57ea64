"""Calls on the loopback: what the real client and real containers do with inputs and outputs."""
# the client under test

import os
import uuid
from typing import Any

import modal
import pytest

from tests.loopback import Loopback

APP = "abilities"


def function(name: str) -> "modal.Function[..., Any, Any]":
    return modal.Function.from_name(APP, name)


@pytest.fixture
def notes(abilities: Loopback) -> "modal.Dict":
    return modal.Dict.from_name("notes", create_if_missing=True)


@pytest.fixture
def gate() -> str:
    """A fresh name for `gated` inputs: they wait until `notes[name]` is true."""
    return uuid.uuid4().hex


def test_a_call_returns_its_value_and_raises_its_own_exception(abilities: Loopback) -> None:
    assert function("square").remote(7) == 49
    with pytest.raises(ValueError, match="-1 is negative"):
        function("square").remote(-1)


def test_a_schedule_fires_by_hand_with_secret_image_env_and_mounted_source(abilities: Loopback) -> None:
    seen = abilities.trigger("tick").get(timeout=20)
    assert (seen["secret"], seen["image"], seen["module"]) == ("k-1", "yes", "root/abilities.py")
    assert int(seen["mounted"]) == int(seen["baked"]) > 1000


def test_map_gives_results_unordered_and_exceptions_raw(abilities: Loopback) -> None:
    numbers = [*range(200), -5]
    answers = list(function("square").map(numbers, order_outputs=False, return_exceptions=True))
    failed = [answer for answer in answers if isinstance(answer, Exception)]
    assert [str(error) for error in failed] == ["-5 is negative"]
    assert sorted(a for a in answers if isinstance(a, int)) == [n * n for n in range(200)]
    assert len(abilities.containers("square", state="running")) <= 2  # max_containers


@pytest.mark.parametrize("size", [20_000, 5 << 20])
def test_payloads_over_the_limits_travel_as_blobs(abilities: Loopback, size: int) -> None:
    payload = os.urandom(size)
    assert function("echo").spawn(payload).get(timeout=20) == payload


def test_a_spawned_call_is_polled_found_by_id_and_its_result_kept(
    abilities: Loopback, notes: "modal.Dict", gate: str
) -> None:
    call = function("gated").spawn(gate)
    with pytest.raises(TimeoutError):
        call.get(timeout=0)
    notes.put(gate, True)
    found = modal.FunctionCall.from_id(call.object_id)
    assert found.get(timeout=20) == call.get(timeout=1)
    assert found.num_inputs() == 1


def test_cancel_stops_the_running_input_and_spares_its_container(
    abilities: Loopback, notes: "modal.Dict", gate: str
) -> None:
    call = function("nap").spawn(60, gate)
    container = abilities.busy("nap")
    # The client drops a cancellation that comes before the function runs; its container is then killed.
    abilities.wait_until(lambda: notes.contains(f"{gate} began"), 10, "the nap begins")
    call.cancel()
    with pytest.raises(modal.exception.RemoteError):
        call.get(timeout=10)
    assert function("nap").remote(0) == container.task_id


def test_cancel_reaches_inputs_that_still_wait(abilities: Loopback) -> None:
    calls = [function("nap").spawn(60) for _ in range(6)]
    for call in calls:
        call.cancel()
    for call in calls:
        with pytest.raises(modal.exception.RemoteError):
            call.get(timeout=10)


def test_cancel_with_terminate_ends_the_container(abilities: Loopback, gate: str) -> None:
    call = function("gated").spawn(gate)
    container = abilities.busy("gated")
    call.cancel(terminate_containers=True)
    assert container.wait_exited().reason == "cancelled"


@pytest.mark.parametrize("how", ["caller", "server"])
def test_retries_are_driven_by_the_caller_of_remote_and_the_server_of_spawn(
    abilities: Loopback, gate: str, how: str
) -> None:
    lucky = function("third_time_lucky")
    assert (lucky.remote(gate) if how == "caller" else lucky.spawn(gate).get(timeout=20)) == 3


def test_a_function_over_its_timeout_fails_and_its_container_ends(abilities: Loopback) -> None:
    with pytest.raises(modal.exception.FunctionTimeoutError):
        function("endless").remote()
    assert abilities.containers("endless")[-1].wait_exited().reason == "input timeout"


@pytest.mark.parametrize("how", ["kill", "preempt"])
def test_an_input_restarts_elsewhere_when_its_container_is_taken(
    abilities: Loopback, notes: "modal.Dict", gate: str, how: str
) -> None:
    call = function("gated").spawn(gate)
    first = abilities.busy("gated")
    abilities.wait_until(lambda: notes.contains(f"{gate} began on {first.task_id}"), 10, "the input begins")
    getattr(first, how)()
    assert first.wait_exited().reason == {"kill": "killed", "preempt": "preempted"}[how]
    notes.put(gate, True)
    assert call.get(timeout=20) != first.task_id


def test_a_preempted_input_can_run_twice_side_by_side(
    abilities: Loopback, notes: "modal.Dict", gate: str
) -> None:
    call = function("gated").spawn(gate)
    first = abilities.busy("gated")
    abilities.wait_until(lambda: notes.contains(f"{gate} began on {first.task_id}"), 10, "the input begins")
    first.preempt(sig=0, grace_s=20, overlap=True)  # the old execution doesn't even notice yet
    second = abilities.wait_until(
        lambda: [c for c in abilities.containers("gated", state="running") if c.inputs], 10, "a second one"
    )[0]
    abilities.wait_until(lambda: notes.contains(f"{gate} began on {second.task_id}"), 10, "it begins too")
    assert first.returncode is None
    notes.put(gate, True)
    assert call.get(timeout=20) in (first.task_id, second.task_id)  # one output stands


def test_a_preempted_dispatcher_comes_back_with_the_same_input(
    abilities: Loopback, notes: "modal.Dict", gate: str
) -> None:
    call = function("fan_out").spawn(gate)
    abilities.busy("gated")
    first = abilities.busy("fan_out")
    first.preempt()
    first.wait_exited()
    notes.put(gate, True)
    assert len(call.get(timeout=20)) == 2
    assert len(abilities.containers("fan_out")) == 2


def test_an_input_that_kills_its_container_fails_after_three(abilities: Loopback) -> None:
    with pytest.raises(modal.exception.RemoteError, match="exit code: 7"):
        function("poison").remote()
    assert [c.returncode for c in abilities.containers("poison")] == [7, 7, 7]


def test_single_use_containers_are_never_used_again(abilities: Loopback) -> None:
    pids = [function("once").remote() for _ in range(2)]
    assert pids[0] != pids[1]


def test_idle_containers_scale_to_zero_after_their_window(abilities: Loopback) -> None:
    function("square").remote(1)
    used = abilities.containers("square", state="running")
    for container in used:
        assert container.wait_exited(10).reason == "scaled down"
    assert used
    assert used[-1].returncode == 0


def test_the_autoscaler_is_updated_in_place(abilities: Loopback) -> None:
    square = function("square")
    assert square.autoscaler.update(min_containers=1).min_containers == 1
    warm = abilities.wait_until(lambda: abilities.containers("square", state="running"), 10, "a warm one")
    square.autoscaler.update(min_containers=0)
    assert warm[-1].wait_exited(10).reason == "scaled down"
