"""The client against a server that misbehaves as a script says."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from handlers.render.api import Api
from handlers.render.client import Client, Unyielding, Watching
from handlers.render.outputs import reported_files
from processor.errors import ErrorKind, TaskFailed
from processor.handler import Progress, Stop
from tests.support.rendering import image_graph
from tests.support.scripted import (
    PROMPT_ID,
    RECORDINGS,
    Script,
    ScriptedEngine,
    recording,
    replayed,
    serve_scripted,
)

needs_recordings = pytest.mark.skipif(not RECORDINGS.is_dir(), reason="../shared/recordings is absent")


@pytest.fixture
def engine() -> Iterator[ScriptedEngine]:
    with serve_scripted() as engine:
        yield engine


@pytest.fixture
def client(engine: ScriptedEngine) -> Iterator[Client]:
    api = Api(engine.url)
    client = Client(api, lost_s=2.0, grace_s=1.0)
    yield client
    client.close()
    api.close()


def watching(**options: Any) -> Watching:
    return Watching(options.pop("stop", Stop()), **options)


def message(kind: str, **data: Any) -> dict[str, Any]:
    return {"type": kind, "data": {"prompt_id": PROMPT_ID, **data}}


def ended(*messages: dict[str, Any], outputs: dict[str, Any] | None = None) -> dict[str, Any]:
    """A history entry with these messages."""
    return {
        "outputs": outputs or {},
        "status": {"messages": [[message["type"], message["data"]] for message in messages]},
    }


START = message("execution_start", timestamp=1000)
SUCCESS = message("execution_success", timestamp=3500)


def raised(exception_type: str, exception_message: str) -> dict[str, Any]:
    return message(
        "execution_error",
        node_id="2",
        node_type="ImageScale",
        exception_type=exception_type,
        exception_message=exception_message,
        traceback=["one line\n"],
        current_inputs={"token": ["hf_abcdefghijklmnopqrstuvwxyz"]},
        timestamp=2000,
    )


def fails(client: Client, **options: Any) -> TaskFailed:
    with pytest.raises(TaskFailed) as caught:
        client.run(image_graph(), watching(**options))
    return caught.value


class TestVerdict:
    def test_success_is_timed_by_the_engine(self, engine: ScriptedEngine, client: Client) -> None:
        """Seconds are the engine's, from its own timestamps."""
        engine.scripts = [Script(messages=[START], history=ended(START, SUCCESS))]
        assert client.run(image_graph(), watching()).seconds == 2.5

    @pytest.mark.parametrize(
        ("exception_type", "text"),
        [
            ("torch.OutOfMemoryError", "Allocation on device 0 would exceed allowed memory"),
            ("torch.cuda.OutOfMemoryError", "x"),
            ("RuntimeError", "CUDA out of memory. Tried to allocate 20.00 MiB"),
            ("Exception", "Allocation on device "),
        ],
    )
    def test_out_of_memory(
        self, engine: ScriptedEngine, client: Client, exception_type: str, text: str
    ) -> None:
        """All the ways in which a GPU's memory is too small."""
        error = raised(exception_type, text)
        engine.scripts = [Script(messages=[START, error], history=ended(START, error))]
        assert fails(client).kind is ErrorKind.OUT_OF_MEMORY

    def test_dead_device_is_a_crash(self, engine: ScriptedEngine, client: Client) -> None:
        """After a CUDA error the process is of no more use: that asks for a restart."""
        error = raised("RuntimeError", "CUDA error: out of memory")
        engine.scripts = [Script(messages=[error], history=ended(START, error))]
        assert fails(client).kind is ErrorKind.CRASHED

    def test_node_failure_without_its_inputs(self, engine: ScriptedEngine, client: Client) -> None:
        """The node and message are kept, quoted inputs and secrets are not."""
        error = raised("ValueError", "bad token hf_abcdefghijklmnopqrstuvwxyz")
        engine.scripts = [Script(messages=[error], history=ended(START, error))]
        failure = fails(client)
        assert failure.kind is ErrorKind.NODE_FAILED
        assert failure.where == "2"
        assert "node 2 ImageScale: bad token" in failure.what
        assert "hf_abc" not in " ".join([str(failure), *failure.details])

    def test_blocked_execution_ends_nothing(self, engine: ScriptedEngine, client: Client) -> None:
        """ExecutionBlocked is reported like an error, and the prompt goes on to succeed."""
        blocked = raised("ExecutionBlocked", "Execution Blocked: no face found")
        engine.scripts = [Script(messages=[START, blocked], history=ended(START, blocked, SUCCESS))]
        assert client.run(image_graph(), watching()).outputs == {}

    def test_last_terminal_message_counts(self, engine: ScriptedEngine, client: Client) -> None:
        error = raised("ValueError", "late")
        engine.scripts = [Script(history=ended(START, SUCCESS, error))]
        assert fails(client).kind is ErrorKind.NODE_FAILED

    def test_foreign_interrupt_is_no_cancellation(self, engine: ScriptedEngine, client: Client) -> None:
        """Someone at the attached server pressed stop: worth another try."""
        interrupted = message("execution_interrupted", node_id="2")
        engine.scripts = [Script(history=ended(START, interrupted))]
        assert fails(client).kind is ErrorKind.UNAVAILABLE


class TestRecordings:
    @needs_recordings
    @pytest.mark.parametrize(
        ("name", "files"),
        [
            ("success", ["ok_00001_.png"]),
            ("success_again_cached", ["ok_00001_.png"]),
            ("batch_and_preview", ["batch_00001_.png", "batch_00002_.png", "batch_00003_.png"]),
            ("animated_webp", ["anim_00001_.webp"]),
            ("video", ["video_00001_.mp4"]),
        ],
    )
    def test_recorded_success(
        self, engine: ScriptedEngine, client: Client, name: str, files: list[str]
    ) -> None:
        """A real ComfyUI's exchange, replayed: its files, and no previews."""
        graph = recording(name)["request"]["prompt"]
        engine.scripts = [replayed(name)]
        verdict = client.run(graph, watching())
        assert [file.filename for file in reported_files(verdict.outputs)] == files

    @needs_recordings
    @pytest.mark.parametrize(
        ("name", "kind", "words"),
        [
            ("invalid_bad_link", ErrorKind.INVALID, "node 1 ImageInvert is linked to node 9"),
            ("invalid_empty", ErrorKind.INVALID, "no node of this graph saves anything"),
            ("invalid_missing_image", ErrorKind.BAD_INPUT, "image: Invalid image file: nope.png"),
            ("invalid_missing_input", ErrorKind.INVALID, "the required input batch_size is missing"),
            ("invalid_missing_model", ErrorKind.MISSING_MODEL, "ckpt_name 'flux.safetensors'"),
            ("invalid_no_outputs", ErrorKind.INVALID, "no node of this graph saves anything"),
            ("invalid_out_of_range", ErrorKind.INVALID, "height -5 is below the smallest allowed, 1"),
            ("invalid_unknown_class", ErrorKind.MISSING_NODE, "node 1 NoSuchNode: the engine has no node"),
            ("partly_valid", ErrorKind.BAD_INPUT, "node 9 SaveImage would be left out"),
            ("runtime_error_bad_prefix", ErrorKind.NODE_FAILED, "Saving image outside the output folder"),
            ("interrupted", ErrorKind.UNAVAILABLE, "interrupted"),
        ],
    )
    def test_recorded_failure(
        self, engine: ScriptedEngine, client: Client, name: str, kind: ErrorKind, words: str
    ) -> None:
        """Each recorded failure becomes the right kind and a sentence that names the place."""
        engine.scripts = [replayed(name)]
        with pytest.raises(TaskFailed) as caught:
            client.run(recording(name)["request"]["prompt"], watching())
        assert caught.value.kind is kind
        assert words in caught.value.what


class TestTroubles:
    def test_socket_cut_before_the_end(self, engine: ScriptedEngine, client: Client) -> None:
        """The verdict is asked for; the next prompt finds the socket open again, as another client.

        ComfyUI forgets a client id when any socket of it ends, a newer one's too: under the old id
        nothing would be heard any more.
        """
        cut = Script(messages=[START, SUCCESS], cut_after=1, history=ended(START, SUCCESS))
        engine.scripts = [cut, Script(history=ended(START, SUCCESS))]
        assert client.run(image_graph(), watching()).seconds == 2.5
        assert client.run(image_graph(), watching()).seconds == 2.5
        assert engine.sockets == 2
        assert len({prompt["client_id"] for prompt in engine.prompts}) == 2

    def test_prompt_that_outlives_its_socket(self, engine: ScriptedEngine, client: Client) -> None:
        """Nobody hears of a prompt of an old client id: it is asked after, much sooner than in silence."""
        engine.scripts = [Script(messages=[START], goes_on_s=0.5, history=ended(START, SUCCESS))]
        assert client.run(image_graph(), watching(timeout_s=10)).seconds == 2.5
        assert engine.sockets == 2

    def test_socket_that_says_nothing(
        self, engine: ScriptedEngine, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Open, but a prompt's end was not told: the next one gets a socket that is heard from."""
        monkeypatch.setattr("handlers.render.client._SILENCE_S", 0.3)
        history = ended(START, SUCCESS)
        engine.scripts = [Script(mute=True, history=history), Script(history=history)]
        for _ in range(2):
            assert client.run(image_graph(), watching()).seconds == 2.5
        assert engine.sockets == 2

    def test_cancelled_after_its_socket_broke(self, engine: ScriptedEngine, client: Client) -> None:
        """A prompt of an old client id is found and interrupted like any other."""
        stop = Stop()
        engine.scripts = [Script(messages=[START], goes_on_s=60)]
        client.listener.follow("another", lambda _: stop.set(ErrorKind.CANCELLED) if engine.prompts else None)
        assert fails(client, stop=stop).kind is ErrorKind.CANCELLED
        assert engine.interrupts == [engine.prompts[0]["prompt_id"]]

    def test_forgetful_server(self, engine: ScriptedEngine, client: Client) -> None:
        """Neither in the queue nor in the history: it was restarted."""
        engine.scripts = [Script(messages=[START], cut_after=1, forget=True)]
        assert fails(client).kind is ErrorKind.CRASHED

    def test_lost_reply_of_an_accepted_prompt(self, engine: ScriptedEngine, client: Client) -> None:
        """The prompt is found by its id; it is not sent twice."""
        engine.scripts = [Script(lose_reply=True, messages=[START], history=ended(START, SUCCESS))]
        assert client.run(image_graph(), watching()).seconds == 2.5
        assert len(engine.prompts) == 1

    def test_server_error(self, engine: ScriptedEngine, client: Client) -> None:
        engine.scripts = [Script(status=500)]
        assert fails(client).kind is ErrorKind.UNAVAILABLE

    def test_dead_process(self, engine: ScriptedEngine) -> None:
        """Once the process is known to be dead, nobody waits for it."""
        alive = threading.Event()
        alive.set()
        api = Api(engine.url)
        client = Client(api, alive=alive.is_set, lost_s=60.0)
        engine.scripts = [Script(messages=[START], hold=True)]
        try:
            assert fails(client, started=alive.clear).kind is ErrorKind.CRASHED
        finally:
            client.close()
            api.close()

    def test_cancel_interrupts_this_prompt(self, engine: ScriptedEngine, client: Client) -> None:
        """Removed from the queue and interrupted by its id."""
        stop = Stop()
        engine.scripts = [Script(messages=[START], hold=True)]
        error = fails(client, stop=stop, started=lambda: stop.set(ErrorKind.CANCELLED))
        assert error.kind is ErrorKind.CANCELLED
        assert engine.interrupts == engine.deleted == [engine.prompts[0]["prompt_id"]]

    def test_time_counts_from_the_start(self, engine: ScriptedEngine, client: Client) -> None:
        """A prompt that has not begun is not overdue, however long it waits."""
        engine.scripts = [Script(messages=[START], hold=True)]
        assert fails(client, timeout_s=0.05).kind is ErrorKind.TIMED_OUT

    def test_waiting_behind_others_is_no_failure(self, engine: ScriptedEngine, client: Client) -> None:
        """An hour of the user's own prompts on an attached engine failed the job, and said that ours took
        too long, which had not begun."""
        engine.scripts = [Script(hold=True)]
        stop = Stop()
        threading.Timer(0.3, stop.set, [ErrorKind.TIMED_OUT]).start()
        error = fails(client, stop=stop)
        assert error.kind is ErrorKind.NO_ENGINE
        assert "others' prompts" in error.what
        assert engine.deleted == [engine.prompts[0]["prompt_id"]]

    def test_engine_that_does_not_yield(self) -> None:
        """An interrupt that has no effect within the grace is told apart."""
        with serve_scripted() as stubborn:
            stubborn.scripts = [Script(messages=[START], hold=True)]
            stubborn._running = _Sticky()
            api = Api(stubborn.url)
            other = Client(api, grace_s=0.2)
            try:
                with pytest.raises(Unyielding) as caught:
                    other.run(image_graph(), watching(timeout_s=0.05))
                assert caught.value.kind is ErrorKind.TIMED_OUT
            finally:
                other.close()
                api.close()

    def test_partly_valid_prompt_is_withdrawn(self, engine: ScriptedEngine, client: Client) -> None:
        """What was queued in part does not run."""
        errors = {"9": {"errors": [], "dependent_outputs": ["3"], "class_type": "LoadImage"}}
        engine.scripts = [Script(node_errors=errors, hold=True)]
        assert fails(client).kind is ErrorKind.INVALID
        assert engine.deleted == [engine.prompts[0]["prompt_id"]]

    def test_stopped_before_it_began(self, engine: ScriptedEngine, client: Client) -> None:
        stop = Stop()
        stop.set(ErrorKind.PREEMPTED)
        assert fails(client, stop=stop).kind is ErrorKind.PREEMPTED
        assert engine.prompts == []


def test_progress_is_told_once_per_change(engine: ScriptedEngine, client: Client) -> None:
    """`progress` and `progress_state` say the same; steps carry the node's title."""
    node = {"state": "running", "display_node_id": "1", "value": 1, "max": 4}
    engine.scripts = [
        Script(
            messages=[
                START,
                message("executing", node="1"),
                message("progress", node="1", value=1, max=4),
                message("progress_state", nodes={"1": node}),
                message("progress", node="1", value=2, max=4),
            ],
            history=ended(START, SUCCESS),
        )
    ]
    seen: list[Progress] = []
    client.run(image_graph(), watching(progress=seen.append))
    assert seen == [Progress("Canvas", 0, 1), Progress("Canvas", 1, 4), Progress("Canvas", 2, 4)]


class _Sticky(dict[str, Script]):
    """A running prompt that no interrupt removes."""

    def pop(self, key: str, default: Any = None) -> Any:
        return default
