"""Trainings with the stand-in trainer, through everything the real one is known to do."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import structlog

from handlers.train.checkpoints import OPTIMIZER, WEIGHTS, CheckpointStore, KeptFile, Snapshot
from handlers.train.dataset_copy import copy_dataset
from handlers.train.settings import train_settings
from handlers.train.weights import read_header
from processor.config import Settings
from processor.errors import ConfigError, ErrorKind
from processor.handler import Stop, Stores, TaskContext, Work
from processor.layout import execution_prefix
from processor.records import Manifest, Outcome
from processor.store.memory import MemoryStore
from tests.support.pictures import captioned, picture, upload
from tests.support.trainer import weights
from tests.support.training import DATASET, SETTINGS, Studio


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    return Studio(tmp_path)


def error_of(manifest: Manifest) -> tuple[ErrorKind, str]:
    assert manifest.error is not None
    return manifest.error.kind, f"{manifest.error.what} {manifest.error.mend}"


def files_of(manifest: Manifest) -> set[str]:
    return {file.name for result in manifest.tasks for file in result.files}


def test_a_dropped_folder_becomes_a_published_lora(studio: Studio, tmp_path: Path) -> None:
    """Dataset in, LoRA out: with metadata, pointer, curve, config, page, and an empty inbox."""
    studio.rescript(samples=True)
    studio.drop_dataset()
    studio.work()
    manifest = studio.manifest()
    assert manifest.outcome is Outcome.DONE, manifest.error
    (lora,) = studio.loras()
    assert lora == f"{DATASET}-{manifest.job_id[-8:]}.safetensors"
    path = tmp_path / "lora"
    path.write_bytes(studio.main.get(f"comfy_models/loras/{lora}").body.read())
    header = read_header(path)
    assert header.step == 10
    assert header.metadata["modelspec.trigger_phrase"] == DATASET
    assert header.metadata["dropbatch.steps"] == "10"
    pointer = studio.bench.read(f"comfy_models/loras/{DATASET}.latest.json")
    assert pointer["key"].endswith(lora)
    assert pointer["facts"]["final_loss"] == pytest.approx(0.1)
    names = files_of(manifest)
    assert names >= {lora, "loss.png", "losses.json", "config.yaml"}
    assert {name for name in names if name.startswith("samples/")} == {
        f"samples/step-00000000{step}-{number}.jpg" for step in (3, 6, 9) for number in (0, 1)
    }
    assert studio.bench.keys("inbox/") == []
    page = studio.main.get(f"comfy_outputs/{manifest.job_id}/training.html").body.read().decode()
    assert "<svg" in page
    assert lora in page


def test_the_trainer_sees_no_secret_and_only_its_own_paths(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scrubbed environment, a private home, a copy of the dataset."""
    monkeypatch.setenv("HF_TOKEN", "hf_aaaaaaaaaaaaaaaaaaaaaaaaa")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x" * 40)
    studio.drop_dataset()
    studio.work()
    seen = json.loads((studio.toolkit / "environment.json").read_text())
    assert not {name for name in seen if "TOKEN" in name or "AWS" in name or "KEY" in name}
    assert seen["HF_HUB_OFFLINE"] == "1"
    config = json.loads((studio.toolkit / "config.json").read_text())["config"]["process"][0]
    root = str(studio.root)
    assert config["training_folder"].startswith(root)
    assert config["datasets"][0]["folder_path"].startswith(root)
    (kept,) = [f for f in studio.manifest().tasks[0].files if f.name == "config.yaml"]
    assert root not in studio.main.get(kept.key).body.read().decode()


def test_the_trainer_reads_captions_without_the_mark_that_editors_put_first(
    studio: Studio, tmp_path: Path
) -> None:
    """It would take it for text; the archive keeps what was dropped."""
    upload(studio.main, DATASET, {"0.png": picture(90), "0.txt": b"\xef\xbb\xbfzoe, marked"})
    studio.drop_dataset(train=False)
    studio.work()
    version = studio.bench.read(f"datasets/{DATASET}/latest.json")["facts"]["fingerprint"]
    copy_dataset(studio.main, DATASET, version, tmp_path / "copy", progress=lambda _done, _total: None)
    assert (tmp_path / "copy/0.txt").read_bytes() == b"zoe, marked"
    archived = studio.main.get(f"datasets/{DATASET}/{version}/0.txt").body.read()
    assert archived == b"\xef\xbb\xbfzoe, marked"


def test_a_checkpoint_is_gone_on_from_and_the_curve_joins_up(studio: Studio) -> None:
    """The trainer is killed at step 8: the next try restores step 6 and trains what is missing."""
    studio.rescript(at={"8": "kill"}, samples=True)
    studio.drop_dataset()
    studio.work()
    manifest = studio.manifest()
    assert manifest.outcome is Outcome.DONE
    result = manifest.tasks[0]
    assert result.tries == 2
    assert result.data["resumed_from"] == 6
    assert studio.trained() == [*range(9), *range(6, 10)]
    assert [step for step, _ in result.data["losses"]] == list(range(10))
    assert len({name for name in files_of(manifest) if name.startswith("samples/")}) == 6


def test_a_checkpoint_without_its_optimizer_is_gone_on_from(studio: Studio) -> None:
    """The trainer says that it could not save it, and goes on; a part of it is no optimizer."""
    studio.rescript(at={"8": "kill"}, optimizer="full disk")
    studio.drop_dataset()
    studio.work()
    manifest = studio.manifest()
    assert (manifest.outcome, manifest.tasks[0].data["resumed_from"]) == (Outcome.DONE, 6)
    assert studio.trained() == [*range(9), *range(6, 10)]
    kept = [key for key in studio.bench.keys("comfy_outputs/") if "/checkpoints/" in key]
    assert kept
    assert not [key for key in kept if key.endswith(OPTIMIZER)]


def test_a_trainer_that_begins_anew_is_stopped_at_once(studio: Studio) -> None:
    """It would train all of it once more, and the manifest would say that it had gone on."""
    studio.rescript(at={"8": "kill"}, resumes=False)
    studio.drop_dataset()
    studio.work()
    manifest = studio.manifest()
    kind, what = error_of(manifest)
    assert kind is ErrorKind.NODE_FAILED
    assert "began at step 0 instead of going on from the checkpoint of step 6" in what
    assert manifest.tasks[0].tries == 2


@pytest.mark.parametrize("name", ["flux_LoRA", "user_cnx", "my_t2i", "x_refiner", "a[1]", "a*", "what?"])
def test_a_scratch_folder_in_which_the_trainer_finds_no_checkpoint_is_refused(
    tmp_path: Path, name: str
) -> None:
    """By the name of its setting; without a trainer it is as good as any."""
    settings = Settings(bucket=str(tmp_path), work_dir=tmp_path / name)
    assert train_settings(settings).rehearsal
    with pytest.raises(ConfigError, match="no checkpoint to go on from") as caught:
        train_settings(settings.model_copy(update={"ai_toolkit_dir": tmp_path}))
    assert caught.value.where == "work_dir"


def test_checkpoints_are_pruned_to_the_newest(studio: Studio) -> None:
    """In the bucket no more than `keep` lie about, under the execution's own key."""
    _fail_at_once(studio)
    _keep_checkpoints(studio, *range(2, 20, 2), keep=SETTINGS["keep"])
    records = [key for key in studio.bench.keys("comfy_outputs/") if "/checkpoints/" in key]
    names = Counter(key.rpartition("/")[2].partition(".")[0] for key in records)
    assert len(names) == SETTINGS["keep"]
    assert max(names) == "000000018"
    assert set(names.values()) == {3}  # weights, optimizer, record
    assert len({key.rpartition("/checkpoints/")[0] for key in records}) == 1


@pytest.mark.parametrize("broken", ["weights", "optimizer", "record", "other job's"])
def test_a_broken_checkpoint_is_passed_over_for_the_one_before(studio: Studio, broken: str) -> None:
    """Only what is whole is restored; the trainer would die of anything else."""
    _fail_at_once(studio)
    _keep_checkpoints(studio, 2, 4, keep=3)
    _forget_outcome(studio)
    newest = max(key for key in studio.bench.keys("comfy_outputs/") if key.endswith("4.json"))
    stem = newest.removesuffix(".json")
    match broken:
        case "weights":
            data = studio.main.get(f"{stem}.safetensors").body.read()
            studio.main.put(f"{stem}.safetensors", data[:-30])
        case "optimizer":
            studio.main.put(f"{stem}.optimizer.pt", b"cut")
        case "record":
            studio.main.put(newest, b"{")
        case _:
            record = studio.bench.read(newest)
            studio.main.put(newest, json.dumps({**record, "hash": "another"}).encode())
    (studio.toolkit / "trained.log").unlink()
    studio.rescript()
    studio.work()
    assert studio.manifest().tasks[0].data["resumed_from"] == (4 if broken == "optimizer" else 2)


def _fail_at_once(studio: Studio) -> None:
    """A job that its trainer never began."""
    studio.rescript(at={"0": "oops"}, always=True)
    studio.drop_dataset(settings={**SETTINGS, "steps": 12, "save_every": 2, "keep": 3})
    studio.work()
    assert studio.manifest().outcome is Outcome.FAILED


def _keep_checkpoints(studio: Studio, *steps: int, keep: int) -> None:
    """As an execution of this task would have left them."""
    manifest = studio.manifest()
    task, attempt = manifest.tasks[0], manifest.attempt
    prefix = execution_prefix(manifest.job_id, attempt, task.index, "0" * 8)
    kept = CheckpointStore(
        studio.main, job_id=manifest.job_id, index=task.index, task_hash=task.hash, prefix=prefix, keep=keep
    )
    for step in steps:
        folder = studio.bench.work_dir / f"step-{step}"
        folder.mkdir(parents=True)
        (folder / WEIGHTS).write_bytes(weights(step))
        (folder / OPTIMIZER).write_bytes(bytes(64))
        kept.upload(Snapshot(step, folder))


def _forget_outcome(studio: Studio) -> None:
    """As if the failed attempt's runner had died instead: no manifest, the drop back in the inbox."""
    manifest = studio.manifest()
    key = f"comfy_outputs/{manifest.job_id}/manifest.json"
    studio.main.delete(key, version=studio.main.stat(key).version)
    (settled,) = [k for k in studio.bench.keys("failed/") if k.endswith(f"{manifest.job_id}.json")]
    studio.main.copy(settled, f"inbox/jobs/emitted/{manifest.job_id}.json")
    studio.bench.leases.delete(f"commit/{manifest.job_id}")


FAILURES: dict[str, tuple[dict[str, Any], ErrorKind, str]] = {
    "loss is nan": ({"at": {"5": "nan"}}, ErrorKind.NODE_FAILED, "no number at step"),
    "weights are nan": ({"ends": "nan"}, ErrorKind.NODE_FAILED, "weights are no numbers"),
    "exit 0 in the middle": ({"at": {"5": "exit 0"}, "always": True}, ErrorKind.CRASHED, "ended early"),
    "final weights one step short": ({"ends": "early"}, ErrorKind.CRASHED, "reached step 9 of 10"),
    "final weights cut off": ({"ends": "cut"}, ErrorKind.CRASHED, "do not open"),
    "out of memory": ({"at": {"1": "oom"}, "always": True}, ErrorKind.OUT_OF_MEMORY, "low_vram"),
    "a caption in latin-1": ({"at": {"4": "caption"}, "always": True}, ErrorKind.BAD_INPUT, "UTF-8"),
    "any exception": ({"at": {"4": "cosmic ray"}, "always": True}, ErrorKind.CRASHED, "cosmic ray"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_each_failure_ends_the_job_with_its_reason_and_publishes_nothing(studio: Studio, case: str) -> None:
    """Exit 0 proves nothing, and a permanent failure is not tried again."""
    script, kind, says = FAILURES[case]
    studio.rescript(**script)
    studio.drop_dataset()
    studio.work()
    manifest = studio.manifest()
    assert manifest.outcome is Outcome.FAILED
    found, what = error_of(manifest)
    assert (found, says in what) == (kind, True), what
    assert manifest.tasks[0].tries == (
        4 if kind is ErrorKind.OUT_OF_MEMORY else 3 if kind is ErrorKind.CRASHED else 1
    )
    assert studio.bench.keys("comfy_models/") == []
    counted = Counter(studio.trained())
    assert max(counted.values()) <= 1 + SETTINGS["save_every"]


def test_a_batch_that_is_skipped_for_want_of_memory_is_not_the_end(studio: Studio) -> None:
    """The trainer goes on; what ends it later is the reason."""
    studio.rescript(at={"2": "skip a batch", "4": "cosmic ray"}, always=True)
    studio.drop_dataset()
    studio.work()
    kind, what = error_of(studio.manifest())
    assert (kind, "cosmic ray" in what) == (ErrorKind.CRASHED, True), what


def test_steps_that_were_skipped_are_told_of_in_the_result(studio: Studio) -> None:
    """A training of which half taught nothing is done, but not as it was asked for."""
    studio.rescript(at={"2": "skip a batch", "4": "skip a batch"})
    studio.drop_dataset()
    studio.work()
    data = studio.manifest().tasks[0].data
    assert data["skipped_steps"] == 2
    assert "WARNING: for 2 steps the GPU had too little memory" in data["text"]


def test_the_trainers_log_is_kept_without_bars(studio: Studio) -> None:
    """What it said is what explains a failure."""
    studio.rescript(at={"4": "cosmic ray"}, always=True)
    studio.drop_dataset()
    studio.work()
    (key,) = [
        k for k in studio.bench.keys(f"comfy_outputs/{studio.manifest().job_id}/") if k.endswith("engine.log")
    ]
    text = studio.main.get(key).body.read().decode()
    assert "RuntimeError: cosmic ray" in text
    assert "it/s" not in text


def test_a_stop_ends_the_trainer_and_the_next_runner_goes_on(studio: Studio) -> None:
    """SIGTERM or a preemption: the process group is gone, the last checkpoint is what resumes."""
    import threading

    studio.rescript(at={"8": "hang"})
    studio.drop_dataset()
    machine = studio.machine()
    stopped = threading.Event()

    def stop_when_it_hangs() -> None:
        deadline = time.monotonic() + 60
        while not (studio.toolkit / "hangs").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        machine.stop.set(ErrorKind.PREEMPTED)
        stopped.set()

    watcher = threading.Thread(target=stop_when_it_hangs)
    watcher.start()
    from processor.dispatch import process
    from processor.tick import tick

    while not stopped.is_set():
        for claim in tick(machine, capacity=2).claims:
            process(machine, claim)
    watcher.join()
    machine.close()
    assert studio.manifests() == []
    assert not _alive(studio)
    studio.work()
    assert studio.manifest().outcome is Outcome.DONE
    assert studio.manifest().tasks[0].data["resumed_from"] == 6


def _alive(studio: Studio) -> bool:
    """Whether any stand-in of this test still runs."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
                if (entry / "cwd").readlink() == studio.toolkit and "run.py" in command:
                    return True
            except OSError:
                continue
    return False


@pytest.mark.parametrize(("job_usd", "policy_usd", "says"), [(1.5, 1e9, "of $1.50"), (None, 2.5, "of $2.50")])
def test_it_stops_right_after_a_checkpoint_when_money_ends(
    tmp_path: Path, job_usd: float | None, policy_usd: float, says: str
) -> None:
    """By the price of where it runs and the job's cap, or everybody's; what was paid for is kept."""
    studio = Studio(tmp_path, usd_per_s=1e6)
    studio.bench.with_policy(max_job_cost_usd=policy_usd, max_day_cost_usd=1e12)
    studio.rescript(at={"saved 3": "pause"})  # it trains no further until it is stopped
    studio.drop_dataset(max_cost_usd=job_usd)
    studio.work()
    kind, what = error_of(studio.manifest())
    assert kind is ErrorKind.OVER_BUDGET
    assert "right after the checkpoint of step" in what
    assert says in what
    assert any("/checkpoints/" in key for key in studio.bench.keys("comfy_outputs/"))


@pytest.mark.parametrize(
    ("limits", "kind"),
    [({"max_cost_usd": 1.0}, ErrorKind.OVER_BUDGET), ({"timeout_s": 4}, ErrorKind.TIMED_OUT)],
)
def test_a_run_that_can_not_reach_its_first_checkpoint_is_stopped_at_once(
    tmp_path: Path, limits: dict[str, Any], kind: ErrorKind
) -> None:
    """Without one, all that it trains is lost: a cap that only a checkpoint asks about would not hold."""
    studio = Studio(tmp_path, usd_per_s=0.1)
    studio.bench.with_policy(max_job_cost_usd=1e9, max_day_cost_usd=1e9)
    studio.rescript(step_s=0.05)
    studio.drop_dataset(settings={**SETTINGS, "steps": 1000, "save_every": 500}, **limits)
    studio.work()
    found, what = error_of(studio.manifest())
    assert found is kind
    assert "stopped at step 1" in what
    assert len(studio.trained()) < 3 * 30


@pytest.mark.parametrize("finish_s", [30.0, 0.0])
def test_the_last_checkpoint_of_a_run_stopped_in_time_gets_the_time_kept_free_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finish_s: float
) -> None:
    """Its upload may take longer than a trainer's end; one that is given up is told of."""
    put = CheckpointStore._put

    def slow(store: CheckpointStore, path: Path, name: str, shown: str) -> KeptFile:
        time.sleep(0.3)
        return put(store, path, name, shown)

    monkeypatch.setattr(CheckpointStore, "_put", slow)
    monkeypatch.setattr("handlers.train.execution._FINISH_S", finish_s)
    studio = Studio(tmp_path, usd_per_s=1e6, stop_grace_s=0.05)
    studio.bench.with_policy(max_day_cost_usd=1e12)
    studio.rescript(at={"saved 3": "pause"})
    studio.drop_dataset(max_cost_usd=1.5)
    with structlog.testing.capture_logs() as logs:
        studio.work()
    assert error_of(studio.manifest())[0] is ErrorKind.OVER_BUDGET
    kept = any(key.endswith("checkpoints/000000003.json") for key in studio.bench.keys("comfy_outputs/"))
    told = any(line["event"] == "checkpoint.given_up" for line in logs)
    assert (kept, told) == ((True, False) if finish_s else (False, True))


def test_a_machine_that_costs_nothing_stops_no_training(studio: Studio) -> None:
    """Without a price no cap becomes a time."""
    studio.drop_dataset(max_cost_usd=0.000001)
    studio.work()
    assert studio.manifest().outcome is Outcome.DONE


def test_it_stops_right_after_a_checkpoint_when_time_ends_and_goes_on_in_the_next_try(studio: Studio) -> None:
    """With a short limit each try gets one checkpoint further."""
    studio.drop_dataset(settings={**SETTINGS, "steps": 8}, timeout_s=50)
    studio.work()
    manifest = studio.manifest()
    assert manifest.outcome is Outcome.DONE
    assert manifest.tasks[0].tries == 3
    counted = Counter(studio.trained())
    assert set(counted) == set(range(8))
    assert sum(counted.values()) <= 8 + 2 * (SETTINGS["save_every"] + 1)


def test_a_sweep_trains_each_setting_and_compares_them(studio: Studio) -> None:
    """One task each; every LoRA has its name; the pointer takes the lowest loss."""
    studio.drop_dataset(sweep={"lr": [1e-4, 1e-3], "steps": [6, 8]})
    studio.work()
    manifest = studio.manifest()
    assert manifest.outcome is Outcome.DONE
    assert len(manifest.tasks) == 4
    assert len(studio.loras()) == 4
    pointer = studio.bench.read(f"comfy_models/loras/{DATASET}.latest.json")
    assert pointer["facts"]["steps"] == 8
    page = studio.main.get(f"comfy_outputs/{manifest.job_id}/training.html").body.read().decode()
    assert page.count('class="smooth') == 4
    assert "lowest" in page


def test_a_rehearsal_does_all_but_train_and_says_so_everywhere(tmp_path: Path) -> None:
    """Without a trainer: dataset fetched, config resolved, nothing published."""
    studio = Studio(tmp_path, rehearsal=True)
    studio.drop_dataset()
    studio.work()
    manifest = studio.manifest()
    assert manifest.outcome is Outcome.DONE
    assert manifest.plan is not None
    assert any("REHEARSAL" in warning for warning in manifest.plan.warnings)
    assert "REHEARSAL" in manifest.tasks[0].data["text"]
    assert "REHEARSAL" in str(manifest.engine["trainer"])
    assert all("rehearsal" in name for name in files_of(manifest))
    assert studio.bench.keys("comfy_models/") == []
    page = studio.main.get(f"comfy_outputs/{manifest.job_id}/training.html").body.read().decode()
    assert "This was a rehearsal" in page


def test_a_retry_of_a_rehearsal_is_refused_with_the_command_that_trains(tmp_path: Path) -> None:
    """Its plan would train for hours and publish nothing."""
    studio = Studio(tmp_path, rehearsal=True)
    studio.drop_dataset()
    studio.work()
    studio.rehearsal = False
    second = retry(studio, studio.manifest(), "all")
    assert second.outcome is Outcome.INVALID
    assert f"dropbatch train {DATASET}" in error_of(second)[1]
    assert studio.trained() == []


def test_a_plan_that_is_a_rehearsal_trains_nothing_where_a_trainer_is(studio: Studio) -> None:
    """Another machine goes on with the plan that was elected: what it trained, nobody would publish."""
    studio.rehearsal = True
    studio.drop_dataset()
    studio.work()
    plan = studio.manifest().plan
    assert plan is not None
    folder = studio.root / "workdir"
    folder.mkdir()
    studio.rehearsal = False
    handler = studio.machine().handlers["train"]
    work = Work(
        job_id=plan.job_id, attempt="2-x", kind="train", task=plan.tasks[0], shared=plan.shared, timeout_s=60
    )
    stores = Stores.single(studio.main)
    context = TaskContext(folder, stores, Stop(), time.monotonic() + 60, lambda _: None)
    assert handler.run(work, context).data["rehearsal"]


def test_a_missing_base_model_names_where_to_put_it(studio: Studio) -> None:
    """Before a GPU is rented: the model is looked for first."""
    studio.drop_dataset(settings={**SETTINGS, "base_model": "nowhere"})
    studio.work()
    kind, what = error_of(studio.manifest())
    assert kind is ErrorKind.MISSING_MODEL
    assert "diffusers" in what
    assert studio.trained() == []


def test_a_folder_dropped_again_after_its_training_failed_names_the_retry(studio: Studio) -> None:
    """The same content is the same training, which has ended: without a word, nothing would happen."""
    settings = {**SETTINGS, "base_model": "later"}
    studio.drop_dataset(settings=settings)
    studio.work()
    first = studio.manifest()
    assert "then `dropbatch retry" in error_of(first)[1]
    for name in ("model_index.json", "unet/weights.bin"):
        studio.main.put(f"models/later/{name}", b"{}")
    studio.bench.clock.advance(3600)
    studio.drop_dataset(settings=settings)
    studio.work()
    *_, second = studio.manifests("ingest")
    said = second.tasks[0].data["text"]
    assert f"failed and runs no more by itself: `dropbatch retry {first.job_id}`" in said
    assert studio.trained() == []
    assert retry(studio, first, "failed").outcome is Outcome.DONE


def test_more_pictures_train_a_second_version_and_move_the_pointer(studio: Studio) -> None:
    """The old LoRA stays; `latest` names the new one."""
    studio.drop_dataset()
    studio.work()
    studio.bench.clock.advance(3600)
    studio.drop_dataset(pictures=2, first=20)
    studio.work()
    first, second = studio.manifests()
    assert second.tasks[0].data["fingerprint"] != first.tasks[0].data["fingerprint"]
    assert len(studio.loras()) == 2
    assert studio.bench.read(f"comfy_models/loras/{DATASET}.latest.json")["job_id"] == second.job_id


def test_datasets_of_other_alphabets_have_pointers_of_their_own(studio: Studio) -> None:
    """Their names have no slug, or the same; a name that a file can have stays as it is."""
    names = ("Зоя", "Маша", "my zoe", "my_zoe", "my-zoe")
    for place, name in enumerate(names):
        options = f"preset: sd15\nsettings: {json.dumps(SETTINGS)}\n".encode()
        upload(studio.main, name, {**captioned(3, first=10 * place), "dataset.yaml": options, "_READY": b""})
        studio.work()
    keys = [key for key in studio.bench.keys("comfy_models/loras/") if key.endswith(".latest.json")]
    assert sorted(studio.bench.read(key)["facts"]["dataset"] for key in keys) == sorted(names)
    assert {key.rpartition("/")[2].partition(".")[0] for key in keys} >= {"my_zoe", "my-zoe"}
    assert len(studio.loras()) == len(names)


def test_an_old_training_that_settles_late_does_not_move_the_pointer_back(studio: Studio) -> None:
    """Effects may be redone at any time; forward is measured by when the job finished."""
    from processor.publishing import published

    studio.drop_dataset()
    studio.work()
    studio.bench.clock.advance(3600)
    studio.drop_dataset(pictures=2, first=20)
    studio.work()
    first, second = studio.manifests()
    machine = studio.machine()
    published(machine, first)
    machine.close()
    assert studio.bench.read(f"comfy_models/loras/{DATASET}.latest.json")["job_id"] == second.job_id


def test_a_test_render_that_a_person_wrote_is_dropped_with_the_loras_name(studio: Studio) -> None:
    """`{lora}` stands for the file; it is dropped once, after the LoRA is there."""
    sample = {"kind": "render", "workflow": "mine", "overrides": {"lora": "{lora}", "strength": 1.0}}
    studio.drop_dataset(sample=sample)
    studio.work()
    renders = [m for m in studio.bench.manifests() if (m.get("job") or {}).get("kind") == "render"]
    assert [m["job"]["overrides"]["lora"] for m in renders] == studio.loras()


SAMPLE = {"kind": "render", "workflow": "mine", "overrides": {"lora": "{lora}"}}


def rendered_loras(studio: Studio) -> list[str]:
    """The LoRAs that test renders were dropped for, the oldest first."""
    renders = [m for m in studio.bench.manifests() if (m.get("job") or {}).get("kind") == "render"]
    return [m["job"]["overrides"]["lora"] for m in sorted(renders, key=lambda each: each["started_at"])]


def retry(studio: Studio, parent: Manifest, tasks: str, **changes: Any) -> Manifest:
    """The manifest of a job that runs its parent's plan again, as `dropbatch retry` drops one."""
    studio.bench.clock.advance(3600)
    assert parent.job is not None
    again = {name: value for name, value in parent.job.items() if name != "origin"} | changes
    studio.bench.drop({**again, "retry_of": parent.job_id, "retry_tasks": tasks}, "inbox/jobs/again.json")
    studio.work()
    return studio.manifests()[-1]


@pytest.mark.parametrize("planned", ["now", "before names left the plan"])
def test_a_retry_publishes_a_lora_of_its_own_beside_the_earlier_one(studio: Studio, planned: str) -> None:
    """LoRAs of one rank have one size: under one name a whole GPU run would be lost, or lose another."""
    studio.drop_dataset(sample=SAMPLE)
    studio.work()
    first, (old,) = studio.manifest(), studio.loras()
    if planned != "now":
        key = f"comfy_outputs/{first.job_id}/manifest.json"
        record = studio.bench.read(key)
        plan = record["plan"]
        plan["tasks"][0]["payload"]["lora"] = old.removesuffix(".safetensors")
        plan["shared"]["emit"][0]["overrides"]["lora"] = old
        studio.main.put(key, json.dumps(record).encode())
    before = studio.main.get(f"comfy_models/loras/{old}").body.read()
    second = retry(studio, first, "all")
    assert second.outcome is Outcome.DONE
    new = f"{DATASET}-{second.job_id[-8:]}.safetensors"
    assert set(studio.loras()) == {old, new}
    assert studio.main.get(f"comfy_models/loras/{old}").body.read() == before
    pointer = studio.bench.read(f"comfy_models/loras/{DATASET}.latest.json")
    assert pointer["key"] == f"comfy_models/loras/{new}"
    published = studio.main.get(pointer["key"]).body.read()
    assert hashlib.sha256(published).hexdigest() == pointer["facts"]["sha256"]
    assert rendered_loras(studio) == [old, new]


def checkpoints(studio: Studio, manifest: Manifest) -> list[str]:
    return [key for key in studio.bench.keys(f"comfy_outputs/{manifest.job_id}/") if "/checkpoints/" in key]


def test_a_retry_goes_on_from_its_parents_last_checkpoint(studio: Studio) -> None:
    """Or that one's parent's, should it not have come to one of its own; `all` begins anew."""
    # It ends by itself, so that all it said is read; a loss that is no number ends it at once.
    studio.rescript(at={"8": "caption"}, always=True)
    studio.drop_dataset()
    studio.work()
    first = studio.manifest()
    kept = checkpoints(studio, first)
    assert any(key.endswith("/000000006.json") for key in kept)  # the one before may have been overtaken
    studio.rescript(at={"7": "caption"}, always=True)
    second = retry(studio, first, "failed")
    assert (second.outcome, checkpoints(studio, second)) == (Outcome.FAILED, [])
    studio.rescript()
    (studio.toolkit / "trained.log").unlink()
    third = retry(studio, second, "failed")
    assert third.tasks[0].data["resumed_from"] == 6
    assert studio.trained() == [*range(6, 10)]
    assert [step for step, _ in third.tasks[0].data["losses"]] == list(range(10))
    assert checkpoints(studio, first) == kept
    fourth = retry(studio, second, "all")
    assert fourth.tasks[0].data["resumed_from"] is None


def test_a_retry_with_more_money_goes_on_where_money_ended(tmp_path: Path) -> None:
    """What the first job has cost is not the second's, whose cap is its own."""
    studio = Studio(tmp_path, usd_per_s=1e6)
    studio.bench.with_policy(max_day_cost_usd=1e12)
    studio.rescript(at={"saved 3": "pause"})
    studio.drop_dataset(max_cost_usd=1.5)
    studio.work()
    first = studio.manifest()
    assert "dropbatch retry --max-cost" in error_of(first)[1]
    studio.rescript()
    second = retry(studio, first, "failed", max_cost_usd=1e11)
    assert (second.outcome, second.tasks[0].data["resumed_from"]) == (Outcome.DONE, 3)


def test_a_checkpoint_knows_which_seconds_another_job_paid_for(tmp_path: Path) -> None:
    """Over all attempts of the retry, too; of two at one step its own counts."""
    store = MemoryStore()
    jobs = {name: f"{name}-{'0' * 16}" for name in ("first", "second")}

    def checkpoints_of(name: str, attempt: str, *retried: str) -> CheckpointStore:
        prefix = execution_prefix(jobs[name], attempt, 0, "0" * 8)
        return CheckpointStore(
            store, job_id=jobs[name], index=0, task_hash="x", prefix=prefix, keep=1, retried=retried
        )

    def keep(kept: CheckpointStore, step: int, seconds: float) -> None:
        folder = tmp_path / f"snapshot-{step}-{seconds}"
        folder.mkdir()
        (folder / WEIGHTS).write_bytes(weights(step))
        kept.upload(Snapshot(step, folder, seconds=seconds))

    def restored(kept: CheckpointStore) -> tuple[int, float, float] | None:
        record = kept.restore(tmp_path)
        return (record.step, record.seconds, record.inherited_s) if record else None

    keep(checkpoints_of("first", "1-a"), 5, 100.0)
    assert restored(checkpoints_of("second", "1-a")) is None
    retried = checkpoints_of("second", "1-a", jobs["first"])
    assert restored(retried) == (5, 100.0, 100.0)
    keep(retried, 5, 120.0)
    assert restored(checkpoints_of("second", "2-a", jobs["first"])) == (5, 120.0, 100.0)
    keep(retried, 9, 150.0)
    assert restored(checkpoints_of("second", "3-a", jobs["first"])) == (9, 150.0, 100.0)
    assert restored(checkpoints_of("first", "2-a")) == (5, 100.0, 0.0)


def test_what_a_retry_copies_keeps_its_loras_name(studio: Studio) -> None:
    """It is the same LoRA; the test render asks for it by the name that it has."""
    studio.rescript(at={"8": "nan"}, always=True)
    studio.drop_dataset(sweep={"steps": [6, 10]}, sample=SAMPLE)
    studio.work()
    first, (old,) = studio.manifest(), studio.loras()
    assert first.outcome is Outcome.PARTIAL
    studio.rescript()
    second = retry(studio, first, "failed")
    assert second.outcome is Outcome.DONE
    assert set(studio.loras()) == {old, f"{DATASET}-{second.job_id[-8:]}-01.safetensors"}
    assert rendered_loras(studio) == [old, old]


def test_the_presets_own_test_render_is_dropped_for_its_own_base(studio: Studio) -> None:
    """The ready workflow with and without the LoRA, on fixed seeds."""
    for name in ("model_index.json", "unet/weights.bin"):
        studio.main.put(f"models/stable-diffusion-v1-5/{name}", b"{}")
    settings = {key: value for key, value in SETTINGS.items() if key != "base_model"}
    studio.drop_dataset(settings=settings)
    studio.work()
    (render,) = [m["job"] for m in studio.bench.manifests() if (m.get("job") or {}).get("kind") == "render"]
    assert render["workflow"] == "lora-grid-sd15"
    assert render["overrides"]["lora"] == studio.loras()[0]
    assert render["matrix"]["product"]["strength"][0] == 0
    assert DATASET in render["overrides"]["prompt"]
