"""Dataset folders: complete or not, frozen once, checked, archived, swept."""

from __future__ import annotations

import io
import json
import struct
import threading
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from handlers.ingest import IngestHandler
from handlers.ingest.command import import_folder
from handlers.ingest.pictures import Looked, Pixels, look_at_picture
from processor.attempt import Trying
from processor.cli.job_files import dataset_files
from processor.cli.uploads import drop_dataset
from processor.datasets import parse_listed, take_inventory, write_listed
from processor.dispatch import process
from processor.errors import JobInvalid, StoreUnavailable
from processor.machine import Machine
from processor.store import ObjectInfo
from processor.store.directory import DirectoryStore
from processor.store.memory import MemoryStore
from processor.testing.clock import ManualClock
from processor.testing.counting import CountingStore
from processor.testing.faults import Fault, FaultPlan, FaultyStore, When
from processor.testing.machine import Bench
from processor.tick import tick
from processor.tick_report import TickReport
from tests.support.pictures import captioned, encoded, picture, upload

NAME = "zoe"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, IngestHandler())


@pytest.fixture
def machine(bench: Bench) -> Iterator[Machine]:
    """A runner that plans no trainings: what an ingest emits stays to be seen."""
    machine = bench.machine()
    yield machine
    machine.close()


def look(machine: Machine) -> TickReport:
    """One tick that claims nothing."""
    return tick(machine, capacity=1, busy=_ALL)


class _Everything:
    """Every job id: a runner that is busy with whatever there is."""

    def __contains__(self, _job: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


_ALL: Any = _Everything()


def work(bench: Bench, *, seconds: float = 0) -> list[dict[str, Any]]:
    """Let time pass, run what is due, return the ingest manifests, oldest first."""
    bench.clock.advance(seconds)
    machine = bench.machine()
    for _ in range(12):
        report = tick(machine, capacity=4)
        for claim in report.claims:
            process(machine, claim)
        if not (report.claims or report.young or report.problem):
            break
    machine.close()
    found = [manifest for manifest in bench.manifests() if manifest.get("kind") == "ingest"]
    return sorted(found, key=lambda manifest: manifest["started_at"])


def trainings(bench: Bench) -> list[dict[str, Any]]:
    """Train jobs that were emitted, wherever they are by now."""
    manifests = [manifest["job"] for manifest in bench.manifests() if manifest.get("job")]
    waiting = [bench.read(key) for key in bench.keys("inbox/jobs/emitted/")]
    return [job for job in [*manifests, *waiting] if job["kind"] == "train"]


def drop_ready(bench: Bench, files: dict[str, bytes], name: str = NAME) -> None:
    upload(bench.main, name, {**files, "_READY": b""})


# --- complete or not -------------------------------------------------------------


def test_ready_needs_one_later_listing_that_agrees(bench: Bench, machine: Machine) -> None:
    """`_READY` may arrive before the last file does: uploaders work in parallel."""
    upload(bench.main, NAME, {**captioned(3), "_READY": b""})
    assert look(machine).folders == {NAME: "soon"}
    upload(bench.main, NAME, {"late.png": picture(99)})
    assert look(machine).folders == {NAME: "soon"}
    assert look(machine).folders == {NAME: "frozen"}
    assert len(bench.keys("inbox/jobs/emitted/")) == 1


def test_quiet_is_measured_on_the_stores_clock_between_two_equal_listings(
    bench: Bench, machine: Machine
) -> None:
    """Every change starts the quiet period anew; the first listing is kept in `state/`."""
    upload(bench.main, NAME, captioned(2))
    assert look(machine).folders == {NAME: "waiting"}
    bench.clock.advance(599)
    assert look(machine).folders == {NAME: "waiting"}
    upload(bench.main, NAME, {"more.png": picture(50)})
    bench.clock.advance(1)
    assert look(machine).folders == {NAME: "waiting"}
    bench.clock.advance(599)
    assert look(machine).folders == {NAME: "waiting"}
    bench.clock.advance(1)
    assert look(machine).folders == {NAME: "frozen"}


def test_a_file_replaced_by_one_of_the_same_size_is_a_change(bench: Bench, machine: Machine) -> None:
    """Names and sizes alone would call it quiet."""
    upload(bench.main, NAME, {"a.txt": b"one", "a.png": picture(1)})
    look(machine)
    bench.clock.advance(300)
    upload(bench.main, NAME, {"a.txt": b"two"})
    look(machine)
    bench.clock.advance(301)
    assert look(machine).folders == {NAME: "waiting"}


def test_a_manifest_waits_for_every_file_at_its_size(bench: Bench, machine: Machine) -> None:
    """With a manifest neither quiet nor `_READY` decides."""
    files = captioned(2)
    listed = {"files": {name: len(data) for name, data in files.items()}}
    last = list(files)[-1]
    upload(bench.main, NAME, {"_manifest.json": json.dumps(listed).encode(), "_READY": b""})
    upload(bench.main, NAME, {**files, last: files[last][:-1]})
    look(machine)
    bench.clock.advance(5000)
    assert look(machine).folders == {NAME: "waiting"}
    upload(bench.main, NAME, {last: files[last]})
    look(machine)
    assert look(machine).folders == {NAME: "frozen"}


class _LineLost(Exception):
    pass


class _Cut(MemoryStore):
    """A connection that is gone after so many files."""

    left = 10**6

    def put(self, key: str, *args: Any, **kwargs: Any) -> ObjectInfo:
        self._count(key)
        return super().put(key, *args, **kwargs)

    def copy(self, source: str, target: str, *args: Any, **kwargs: Any) -> ObjectInfo:
        self._count(target)
        return super().copy(source, target, *args, **kwargs)

    def _count(self, key: str) -> None:
        if key.startswith("inbox/datasets/"):
            self.left -= 1
            if self.left < 0:
                raise _LineLost


@pytest.mark.parametrize("versions", [True, False])
@pytest.mark.parametrize("way", ["drop", "import"])
def test_a_drop_that_was_cut_off_is_never_taken_for_the_whole(
    tmp_path: Path, way: str, versions: bool
) -> None:
    """However quiet its folder is; dropped again it is complete, also where all sizes are as before."""
    store = _Cut(versions=versions)
    bench = Bench(tmp_path / "bench", IngestHandler(), store=store)
    folder = tmp_path / NAME
    folder.mkdir()

    def again(files: dict[str, bytes], *, puts: int = 10**6) -> None:
        for name, data in files.items():
            (folder / name).write_bytes(data)
            store.put(f"elsewhere/{NAME}/{name}", data)
        store.left = puts
        with suppress(_LineLost):
            if way == "drop":
                drop_dataset(store, folder, dataset_files(folder), name=NAME, moved=lambda _: None)
            else:
                import_folder(store, f"elsewhere/{NAME}")
        store.left = 10**6

    files = captioned(6)
    again(files, puts=5)
    assert work(bench) == work(bench, seconds=5000) == []
    again(files)
    changed = {name: b"zoe umber" + data[-2:] for name, data in files.items() if name.endswith(".txt")}
    again(changed, puts=5)
    assert work(bench) == work(bench, seconds=5000) == []
    again({})
    (manifest,) = work(bench)
    assert manifest["outcome"] == "done"
    (record,) = (key for key in bench.keys("datasets/") if key.endswith("/dataset.json"))
    captions = [file.get("caption") for file in bench.read(record)["files"]]
    assert len(captions) == 12
    assert {caption[:9] for caption in captions if caption} == {"zoe umber"}
    (report,) = (key for key in bench.keys("comfy_outputs/") if key.endswith("/report.json"))
    assert "_manifest.json" not in json.dumps(bench.read(report))
    assert bench.keys("inbox/datasets/") == []


def test_what_failed_can_be_put_right_and_taken_in_from_where_it_lies(bench: Bench) -> None:
    """The list of its files went up with it, and would hold up a folder of other sizes."""
    files = {**captioned(3), "000.png": b"no picture"}
    for name, data in files.items():
        bench.main.put(f"elsewhere/{NAME}/{name}", data)
    import_folder(bench.main, f"elsewhere/{NAME}")
    (manifest,) = work(bench)
    assert manifest["outcome"] == "failed"
    (bad,) = (key for key in bench.keys("failed/") if key.endswith("/000.png"))
    bench.main.put(bad, captioned(1)["000.png"])
    import_folder(bench.main, bad.rpartition("/")[0])
    assert work(bench)[-1]["outcome"] == "done"


@pytest.mark.parametrize(
    "data", [b"{", b"[]", b'{"files": []}', b'{"files": {"a": -1}}', b'{"files": {"a": true}}']
)
def test_a_manifest_that_lists_nothing_usable_is_named(data: bytes) -> None:
    """A broken list is the uploader's mistake, and is said so."""
    with pytest.raises(JobInvalid):
        parse_listed(data, where="x")


@pytest.mark.parametrize(
    "listed", [b'{"files": {"\\ud800.png": 5}}', b'{"files": ' + b"[" * 100_000, b'{"files": {"a.png": 5}} x']
)
def test_a_hostile_manifest_ends_its_own_folder_only(bench: Bench, listed: bytes) -> None:
    """What no state, log or page could hold is refused as any broken list, and the tick goes on."""
    upload(bench.main, NAME, {"_manifest.json": listed, "a.png": b"12345"})
    upload(bench.main, "other", {**captioned(3), "_READY": b""})
    work(bench)
    manifests = {manifest["job"]["dataset"]: manifest for manifest in work(bench, seconds=600)}
    assert manifests["other"]["outcome"] == "done"
    assert manifests[NAME]["outcome"] == "invalid"


def test_what_is_said_of_missing_files_is_bounded(bench: Bench, machine: Machine) -> None:
    """It is remembered in a small file; names may be as long as somebody likes."""
    names = {f"{k}{'n' * 100_000}.png": 5 for k in range(20)}
    upload(bench.main, NAME, {"_manifest.json": json.dumps({"files": names}).encode(), "a.png": b"x"})
    for _ in range(3):
        assert look(machine).folders in ({NAME: "soon"}, {NAME: "waiting"})


def test_a_folder_that_never_gets_complete_ends_invalid_naming_what_is_missing(bench: Bench) -> None:
    """After its deadline it fails, and what was uploaded is kept in `failed/`."""
    upload(bench.main, NAME, {"_manifest.json": b'{"files": {"a.png": 5, "b.png": 6}}', "a.png": b"12345"})
    assert work(bench) == []
    assert work(bench, seconds=3600) == []
    (manifest,) = work(bench, seconds=24 * 3600)
    assert manifest["outcome"] == "invalid"
    assert "b.png (not there)" in manifest["error"]["what"]
    assert bench.keys("inbox/") == []
    assert any(key.endswith("/zoe/a.png") for key in bench.keys("failed/"))


def test_an_upload_that_takes_days_is_waited_for(bench: Bench, machine: Machine) -> None:
    """As long as more of its list comes: given up in part, the rest would be taken for the whole."""
    files = captioned(20)
    upload(bench.main, NAME, {"_manifest.json": write_listed({name: len(files[name]) for name in files})})
    for name, data in files.items():
        upload(bench.main, NAME, {name: data})
        assert look(machine).folders[NAME] in ("soon", "waiting")
        bench.clock.advance(3600)
        assert look(machine).folders[NAME] in ("soon", "waiting")
        bench.clock.advance(3600)
    upload(bench.main, NAME, {"_READY": b""})
    (manifest,) = work(bench)
    assert manifest["outcome"] == "done"


def test_an_upload_without_end_is_given_up(bench: Bench, machine: Machine) -> None:
    """Something that changes at every look for a day is no dataset."""
    for k in range(30):
        upload(bench.main, NAME, {"a.txt": str(k).encode()})
        last = look(machine).folders[NAME]
        bench.clock.advance(3600)
        if last == "frozen":
            break
    assert k == 24
    (key,) = bench.keys("inbox/jobs/emitted/")
    assert "still changing" in bench.read(key)["problem"]


def test_a_runner_that_slept_does_not_call_a_quiet_folder_endless(bench: Bench) -> None:
    """The deadline is for folders that were looked at and did not get complete."""
    upload(bench.main, NAME, captioned(3))
    assert work(bench) == []
    upload(bench.main, NAME, captioned(1, first=7))
    assert work(bench, seconds=48 * 3600) == []
    (manifest,) = work(bench, seconds=601)
    assert manifest["outcome"] == "done"


@pytest.mark.parametrize("name", [".hidden", "x" * 101])
def test_an_impossible_name_is_ignored_and_stops_nothing(bench: Bench, machine: Machine, name: str) -> None:
    """A folder that can't be a dataset does not keep others from being taken."""
    drop_ready(bench, captioned(1), name)
    drop_ready(bench, captioned(1), "good")
    look(machine)
    assert look(machine).folders == {name: "ignored", "good": "frozen"}


def test_markers_are_never_data(bench: Bench, machine: Machine) -> None:
    """Litter neither keeps a folder restless nor becomes part of it."""
    upload(bench.main, NAME, {".DS_Store": b"x", "._a.png": b"x", ".bzEmpty": b"", "Thumbs.db": b"x"})
    assert look(machine).folders == {}
    upload(bench.main, NAME, captioned(1))
    inventory = take_inventory(NAME, bench.main.list(f"inbox/datasets/{NAME}/"))
    assert [file.name for file in inventory.files] == ["000.png", "000.txt"]
    assert len(inventory.markers) == 4


def test_two_runners_that_freeze_at_once_make_one_job(bench: Bench, machine: Machine) -> None:
    """Their listings differ by one file; the election picks one, and both emit that."""
    other = bench.machine()
    drop_ready(bench, captioned(3))
    look(machine)
    state = bench.main.get("state/datasets/" + _state_file(bench)).body.read()
    assert look(machine).folders == {NAME: "frozen"}
    frozen = bench.keys("inbox/jobs/emitted/")
    # The second runner read the state before the first wrote, and a file more is there by now.
    upload(bench.main, NAME, {"late.png": picture(77)})
    fresh = scan_digest(bench)
    changed = json.loads(state) | {"digest": fresh}
    bench.main.put("state/datasets/" + _state_file(bench), json.dumps(changed).encode())
    assert look(other).folders == {NAME: "frozen"}
    assert bench.keys("inbox/jobs/emitted/") == frozen
    other.close()


def _state_file(bench: Bench) -> str:
    (key,) = bench.keys("state/datasets/")
    return key.rpartition("/")[2]


def scan_digest(bench: Bench) -> str:
    return take_inventory(NAME, bench.main.list(f"inbox/datasets/{NAME}/")).digest


def test_an_emission_lost_to_a_crash_is_made_good(bench: Bench, machine: Machine) -> None:
    """Frozen, but the runner died before the drop was written."""
    drop_ready(bench, captioned(3))
    look(machine)
    look(machine)
    (key,) = bench.keys("inbox/jobs/emitted/")
    bench.main.delete(key, version=bench.main.stat(key).version)
    assert look(machine).folders == {NAME: "busy"}
    assert bench.keys("inbox/jobs/emitted/") == [key]


# --- the whole way ---------------------------------------------------------------


def test_a_folder_becomes_a_dataset_and_one_train_job(bench: Bench) -> None:
    """Archived under its fingerprint, swept from the inbox, a receipt left, a training dropped."""
    files = captioned(3)
    drop_ready(bench, files)
    (manifest,) = work(bench)
    assert manifest["outcome"] == "done"
    data = manifest["tasks"][0]["data"]
    prefix = f"datasets/{NAME}/{data['fingerprint']}/"
    assert sorted(bench.keys(prefix)) == sorted(prefix + name for name in [*files, "dataset.json"])
    assert bench.main.get(prefix + "000.png").body.read() == files["000.png"]
    assert bench.keys(f"inbox/datasets/{NAME}/") == []
    assert [key for key in bench.keys("done/") if key.endswith("receipt.json")] != []
    (job,) = trainings(bench)
    assert job["dataset"] == f"{NAME}/{data['fingerprint']}"
    assert job["trigger_word"] == NAME
    assert bench.read(f"datasets/{NAME}/latest.json")["facts"]["fingerprint"] == data["fingerprint"]


def test_the_same_content_again_trains_nothing_new(bench: Bench) -> None:
    """The training's id follows from the version: dropped again, it is the job that has run."""
    drop_ready(bench, captioned(3))
    work(bench)
    first = trainings(bench)
    bench.clock.advance(100)
    drop_ready(bench, {**captioned(3), "dataset.yaml": b"replace: true"})
    manifests = work(bench)
    assert len(manifests) == 2
    # No handler here trains: it ended invalid, and the same drop does not try again.
    assert f"and runs no more by itself: `dropbatch train {NAME}`" in manifests[1]["tasks"][0]["data"]["text"]
    assert trainings(bench) == first


def test_the_same_content_with_other_options_is_trained_and_nothing_else_is_said(bench: Bench) -> None:
    """Archived only at first; the text must not deny the training that follows."""
    drop_ready(bench, {**captioned(3), "dataset.yaml": b"train: false"})
    work(bench)
    assert trainings(bench) == []
    for options in (b"train: false", b"preset: sd15\nsteps: 100"):
        bench.clock.advance(100)
        drop_ready(bench, {**captioned(3), "dataset.yaml": options})
        work(bench)
    (job,) = trainings(bench)
    assert job["preset"] == "sd15"
    _, archived, trained = (manifest["tasks"][0]["data"]["text"] for manifest in work(bench))
    assert archived.endswith("which is there already")
    assert trained.endswith("which is there already; it is trained only if its options are new")


def test_more_pictures_join_the_newest_version(bench: Bench) -> None:
    """A new version holds both; the old one stays as it was."""
    drop_ready(bench, captioned(3))
    work(bench)
    bench.clock.advance(100)
    drop_ready(bench, {**captioned(2, first=10), "000.txt": b"zoe, a better caption"})
    first, second = (manifest["tasks"][0]["data"] for manifest in work(bench))
    assert (first["examples"], second["examples"]) == (3, 5)
    prefix = f"datasets/{NAME}/{second['fingerprint']}/"
    assert bench.main.get(prefix + "000.txt").body.read() == b"zoe, a better caption"
    assert len(bench.keys(f"datasets/{NAME}/{first['fingerprint']}/")) == 7
    assert len(bench.keys("state/inventories/")) == 1
    assert len(trainings(bench)) == 2


OPTIONS = b"preset: sd15\nsteps: 12\ntrigger_word: z0e\npublish: portraits\nmax_cost_usd: 8\nreplace: true\n"


def test_pictures_that_join_are_trained_with_the_options_of_what_they_join(bench: Bench) -> None:
    """Who said once how to train need not say it with each further picture; who says it anew, says it all."""
    drop_ready(bench, {**captioned(3), "dataset.yaml": OPTIONS})
    work(bench)
    for first, options in ((10, {}), (20, {}), (30, {"dataset.yaml": b"steps: 5"})):
        bench.clock.advance(100)
        drop_ready(bench, {**captioned(1, first=first), **options})
        work(bench)
    manifests = work(bench)
    assert [manifest["tasks"][0]["data"]["examples"] for manifest in manifests] == [3, 4, 5, 6]
    ids = [manifest["tasks"][0]["data"]["fingerprint"] for manifest in manifests]
    jobs = {job["dataset"].partition("/")[2]: job for job in trainings(bench)}
    keys = ("preset", "settings", "trigger_word", "publish", "max_cost_usd")
    said = [{key: jobs[each].get(key) for key in keys} for each in ids]
    assert said[0] == said[1] == said[2]
    assert said[0] == {
        "preset": "sd15",
        "settings": {"steps": 12},
        "trigger_word": "z0e",
        "publish": "portraits",
        "max_cost_usd": 8,
    }
    assert said[3]["settings"] == {"steps": 5}
    assert said[3]["trigger_word"] == NAME
    report = next(file for file in manifests[1]["tasks"][0]["files"] if file["name"] == "report.txt")
    assert f"Options: as version {ids[0]} had them" in bench.main.get(report["key"]).body.read().decode()
    assert f"options as version {ids[0]} had them" in manifests[1]["tasks"][0]["data"]["text"]


def test_options_too_many_for_a_pointer_are_not_kept(bench: Bench) -> None:
    """It is a small file, which every later drop of the name reads."""
    prompts = "".join(f"- {'long ' * 300}\n" for _ in range(16))
    sweep = "".join(f"  - {'x' * 900}{k}\n" for k in range(20))
    options = f"train: false\nsample_prompts:\n{prompts}sweep:\n  prompt:\n{sweep}"
    drop_ready(bench, {**captioned(3), "dataset.yaml": options.encode()})
    work(bench)
    bench.clock.advance(100)
    drop_ready(bench, captioned(1, first=10))
    assert [manifest["outcome"] for manifest in work(bench)] == ["done", "done"]


def test_replace_makes_the_folder_alone_the_new_version(bench: Bench) -> None:
    """`replace: true` joins nothing."""
    drop_ready(bench, captioned(3))
    work(bench)
    bench.clock.advance(100)
    drop_ready(bench, {**captioned(4, first=10), "dataset.yaml": b"replace: true\nsteps: 12\nlr: 1e-3\n"})
    data = work(bench)[1]["tasks"][0]["data"]
    assert data["examples"] == 4
    job = next(job for job in trainings(bench) if data["fingerprint"] in job["dataset"])
    assert job["settings"] == {"steps": 12, "lr": 0.001}


def test_a_file_changed_after_the_freezing_does_not_leak_in(bench: Bench, machine: Machine) -> None:
    """The frozen version is what is archived; the newer one waits for the next version."""
    files = captioned(3)
    drop_ready(bench, files)
    look(machine)
    look(machine)
    upload(bench.main, NAME, {"000.png": picture(500)})
    (manifest,) = work(bench)
    prefix = f"datasets/{NAME}/{manifest['tasks'][0]['data']['fingerprint']}/"
    assert bench.main.get(prefix + "000.png").body.read() == files["000.png"]
    assert bench.main.get(f"inbox/datasets/{NAME}/000.png").body.read() == picture(500)


def test_replaced_uploads_never_resurface(bench: Bench) -> None:
    """Older versions under the frozen ones go with them."""
    upload(bench.main, NAME, {name: picture(700) for name in captioned(3) if name.endswith(".png")})
    drop_ready(bench, captioned(3))
    (manifest,) = work(bench)
    assert manifest["outcome"] == "done"
    left = [item for page in bench.main.list("inbox/datasets/", versions=True) for item in page.objects]
    assert left == []


@pytest.mark.parametrize("at", range(1, 40, 3))
def test_a_sweep_cut_off_anywhere_is_finished_and_never_taken_for_a_dataset(tmp_path: Path, at: int) -> None:
    """The store fails in the middle; later passes end with one dataset and an empty inbox."""
    clock = ManualClock()
    plan = FaultPlan(Fault("*", When.AFTER, after=at + 20, times=2))
    bench = Bench(tmp_path, IngestHandler(), clock=clock, store=FaultyStore(MemoryStore(clock=clock), plan))
    drop_ready(bench, captioned(4))
    for _ in range(8):
        with suppress(StoreUnavailable):  # the test's own reading may meet the fault
            work(bench, seconds=700)
    (manifest,) = work(bench, seconds=700)
    assert manifest["outcome"] == "done"
    assert bench.keys("inbox/datasets/") == []
    assert len({key.split("/")[2] for key in bench.keys(f"datasets/{NAME}/") if key.count("/") == 3}) == 1
    assert len(trainings(bench)) == 1


def test_on_a_store_without_versions_a_folder_is_taken_as_well(tmp_path: Path) -> None:
    """Versions are asked for one by one at the freezing."""
    clock = ManualClock()
    bench = Bench(tmp_path, IngestHandler(), clock=clock, store=MemoryStore(clock=clock, versions=False))
    drop_ready(bench, captioned(3))
    (manifest,) = work(bench)
    assert manifest["outcome"] == "done"
    assert bench.keys("inbox/datasets/") == []


# --- what is wrong with a folder --------------------------------------------------


def odd_exif() -> bytes:
    """A photograph to be turned, whose width is a fraction: Pillow fails where it writes that anew."""
    entries = struct.pack("<HHII", 0x0100, 5, 1, 38) + struct.pack("<HHII", 0x0112, 3, 1, 6)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<III", 0, 72, 1)
    stream = io.BytesIO()
    Image.new("RGB", (64, 48)).save(stream, "JPEG", exif=exif)
    return stream.getvalue()


BAD: dict[str, tuple[dict[str, bytes], str]] = {
    "broken picture": ({"bad.png": b"\x89PNG\r\n\x1a\nxxxx"}, "bad.png: "),
    "cut-off picture": ({"cut.jpg": picture(3, form="JPEG")[:-200]}, "cut.jpg: does not decode"),
    "no picture": ({"page.jpg": b"<html>"}, "page.jpg: is no picture"),
    "odd EXIF": (
        {"photo.jpg": odd_exif()},
        "photo.jpg: does not decode: required argument is not an integer; ",
    ),
    "a page for a printer": (
        {"page.jpg": encoded(Image.new("RGB", (64, 64)), "EPS")},
        "page.jpg: is no picture",
    ),
    "grey of 16 bits": (
        {"scan.png": encoded(Image.new("I;16", (64, 64), 40_000))},
        "scan.png: has more than",
    ),
    "captions that differ in case": ({"000.TXT": b"zoe"}, "000.txt: has the same stem as 000.txt"),
    "caption not UTF-8": ({"000.txt": b"caf\xe9"}, "000.txt: is not UTF-8"),
    "clashing stems": ({"000.jpg": picture(9, form="JPEG")}, "000.jpg: has the same stem as 000.png"),
    "stems that differ in case": ({"A.png": picture(8), "a.png": picture(9)}, "A.png: has the same stem"),
    "options called otherwise": ({"Dataset.YML": b"train: false"}, "Dataset.YML: is not read"),
    "options with a suffix that is not shown": (
        {"dataset.yaml.txt": b"train: false"},
        "dataset.yaml.txt: is not read: the options' name is dataset.yaml",
    ),
    "a name too long": ({f"{'é' * 101}.png": picture(9)}, f"{'é' * 101}.png: has too long a name"),
    "unusable format": ({"moving.gif": picture(3, form="GIF")}, "moving.gif: is of a format"),
    "a video for a picture model": ({"clip.mp4": b"\0\0\0\x18ftypmp42" + bytes(90)}, "clip.mp4: "),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_fails_the_folder_before_a_gpu_and_is_named(bench: Bench, case: str) -> None:
    """The report names each file; nothing is archived, nothing trains, the upload is kept."""
    files, names = BAD[case]
    drop_ready(bench, {**captioned(3), **files})
    (manifest,) = work(bench)
    assert manifest["outcome"] == "failed"
    assert any(names in detail for detail in manifest["error"]["details"]), manifest["error"]
    assert bench.keys("datasets/") == []
    assert bench.keys("inbox/") == []
    assert trainings(bench) == []
    kept = bench.keys("failed/")
    assert {key.rpartition("/")[2] for key in kept} >= {*files, "report.json", "report.txt", "receipt.json"}
    (report,) = [key for key in kept if key.endswith("report.json")]
    assert any(error["file"] in names for error in bench.read(report)["errors"])


def test_a_dataset_given_up_says_where_its_files_are(bench: Bench, machine: Machine) -> None:
    """`dropbatch retry` is not for folders."""
    drop_ready(bench, captioned(3))
    for _ in range(bench.policy.max_attempts):
        while not (claims := tick(machine, capacity=1).claims):
            pass
        Trying(machine, claims[0], machine.clock.now()).begin()
        bench.clock.advance(bench.policy.lease_s + 2 * bench.policy.margin_s)
    (manifest,) = work(bench)
    assert manifest["outcome"] == "dead"
    folder = f"{manifest['job_id']}/{NAME}/"
    assert f"failed/<date>/{folder}" in manifest["error"]["mend"]
    assert any(folder in key for key in bench.keys("failed/"))


def test_a_picture_that_claims_a_billion_pixels_is_refused_unread(bench: Bench) -> None:
    """A decompression bomb: 100 kB that would be gigabytes."""
    bomb = bytearray(encoded(Image.new("1", (64, 64))))
    bomb[16:24] = (40_000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bytes(bomb[12:29])).to_bytes(4, "big")
    drop_ready(bench, {**captioned(3), "bomb.png": bytes(bomb)})
    (manifest,) = work(bench)
    assert any("pixels" in detail for detail in manifest["error"]["details"])


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_large_photograph_is_seen_upright_from_a_small_copy(tmp_path: Path, form: str) -> None:
    """Its size is the whole one's, its look that of the same picture small."""
    scene = Image.linear_gradient("L").resize((1600, 1200)).convert("RGB")
    scene.paste((200, 30, 30), (900, 100, 1500, 700))
    exif = Image.Exif()
    exif[0x0112] = 6
    looks = []
    for k, size in enumerate(((1600, 1200), (800, 600))):
        path = tmp_path / f"{k}.{form.lower()}"
        scene.resize(size).save(path, form, exif=exif)
        looks.append(look_at_picture(path))
    whole, small = looks
    assert ((whole.width, whole.height), (small.width, small.height)) == ((1200, 1600), (600, 800))
    assert whole.look is not None
    assert small.look is not None
    assert (whole.look ^ small.look).bit_count() <= 1
    assert all(abs(a - b) <= 4 for a, b in zip(whole.colour, small.colour, strict=True))


def test_large_pictures_wait_for_each_other() -> None:
    """Eight threads may not decode eight of the largest at once; one alone is always let in."""
    pixels, order = Pixels(10), []

    def decode() -> None:
        with pixels.held(4):
            order.append("second in")

    second = threading.Thread(target=decode)
    with pixels.held(20):
        second.start()
        second.join(0.1)
        order.append("first out")
    second.join()
    assert order == ["first out", "second in"]
    with pixels.held(4), pixels.held(6):
        pass


def test_too_few_pictures_fail_the_folder(bench: Bench) -> None:
    """One picture is an accident."""
    drop_ready(bench, captioned(1))
    (manifest,) = work(bench)
    assert "at least 3 are needed" in manifest["error"]["what"]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (b"preset: fluks1-dev", "flux1-dev"),
        (b"stepz: 5", "steps"),
        (b"steps: many", "steps"),
        (b"steps: [1", "YAML"),
        (b"- a", "mapping"),
        (b"a: &a [x,x]\nb: !!python/object:os.system x", "YAML"),
        (b"settings: {lr: -1}", "lr"),
    ],
)
def test_options_that_make_no_sense_end_invalid(bench: Bench, options: bytes, names: str) -> None:
    """dataset.yaml is checked before anything is read or copied."""
    drop_ready(bench, {**captioned(3), "dataset.yaml": options})
    (manifest,) = work(bench)
    assert manifest["outcome"] == "invalid"
    assert names in json.dumps(manifest["error"])


def test_what_is_merely_odd_is_warned_about(bench: Bench) -> None:
    """Missing captions, copies, lookalikes, small or long pictures: named, and trained on."""
    near = encoded(Image.open(io.BytesIO(picture(1))).resize((80, 80)))
    drop_ready(
        bench,
        {
            **captioned(3),
            "copy.png": picture(1),
            "near.png": near,
            "long.png": picture(40, size=(400, 40)),
            "empty.png": picture(41),
            "empty.txt": b" ",
            "plain.png": picture(42),
            "plain.txt": b"somebody",
            "orphan.txt": b"zoe",
            "readme.md": b"hello",
        },
    )
    (manifest,) = work(bench)
    assert manifest["outcome"] == "done"
    (key,) = [file["key"] for file in manifest["tasks"][0]["files"] if file["name"] == "report.json"]
    said = {(finding["file"], finding["what"].split(";")[0]) for finding in bench.read(key)["warnings"]}
    assert ("copy.png", "is the same file as 001.png") in said
    assert ("near.png", "looks nearly like 001.png") in said
    assert ("copy.png", "has no caption") in said
    assert ("empty.txt", "is empty") in said
    assert ("plain.txt", "lacks the trigger word 'zoe'") in said
    assert ("orphan.txt", "belongs to no picture of that name") in said
    assert any(file == "readme.md" for file, _ in said)
    assert any(file == "long.png" and "very long" in what for file, what in said)


def test_captions_are_taken_as_they_are_written(bench: Bench) -> None:
    """Under the suffix that the trainer looks for, and without a mark that would be part of the text."""
    files = {"000.png": picture(0), "000.TXT": b"zoe in large", "a/001.png": picture(1)}
    files |= {"a/001.Txt": b"\xef\xbb\xbfzoe, marked", "002.png": picture(2), "002.txt": b"\xef\xbb\xbf\n"}
    drop_ready(bench, files)
    (manifest,) = work(bench)
    assert manifest["outcome"] == "done"
    prefix = f"datasets/{NAME}/{manifest['tasks'][0]['data']['fingerprint']}/"
    record = {file["name"]: file.get("caption") for file in bench.read(prefix + "dataset.json")["files"]}
    assert record == {
        "000.png": None,
        "000.txt": "zoe in large",
        "002.png": None,
        "002.txt": "",
        "a/001.png": None,
        "a/001.txt": "zoe, marked",
    }
    assert bench.main.get(prefix + "000.txt").body.read() == b"zoe in large"
    (key,) = [file["key"] for file in manifest["tasks"][0]["files"] if file["name"] == "report.json"]
    assert [finding["file"] for finding in bench.read(key)["warnings"] if "is empty" in finding["what"]] == [
        "002.txt"
    ]


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        (b"preset: sd15", "clip.mp4: preset sd15 takes no videos"),
        (b"preset: wan21-14b", "clip.mp4: at num_frames 1 the trainer sees no videos; set num_frames"),
        (b"preset: wan21-14b\nnum_frames: 41", None),
        (b"preset: wan21-14b\nsweep: {num_frames: [21, 41]}", None),
    ],
)
def test_videos_are_taken_where_the_trainer_looks_for_them(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, options: bytes, refused: str | None
) -> None:
    """With a preset that can, once somebody has said how many frames."""
    monkeypatch.setattr("handlers.ingest.examine.look_at_video", lambda _path: Looked())
    drop_ready(bench, {**captioned(3), "clip.mp4": b"a clip", "dataset.yaml": options})
    (manifest,) = work(bench)
    assert manifest["outcome"] == ("failed" if refused else "done")
    if refused:
        assert manifest["error"]["details"][0].startswith(refused)


def test_where_the_trainer_does_not_look_nothing_counts(bench: Bench) -> None:
    """Hidden folders and files, and the pictures that it makes of others."""
    hidden = [".thumbs/000.png", "a/.b/c/001.png", ".002.png", "a/_controls/003.png", "_controls/003.txt"]
    drop_ready(bench, {**captioned(3), **dict.fromkeys(hidden, b"whatever"), "controls/4.png": picture(4)})
    (manifest,) = work(bench)
    assert manifest["outcome"] == "done"
    data = manifest["tasks"][0]["data"]
    assert data["examples"] == 4
    prefix = f"datasets/{NAME}/{data['fingerprint']}/"
    assert not {key.removeprefix(prefix) for key in bench.keys(prefix)} & set(hidden)
    (key,) = [file["key"] for file in manifest["tasks"][0]["files"] if file["name"] == "report.json"]
    warned = {finding["file"] for finding in bench.read(key)["warnings"] if "left out" in finding["what"]}
    assert warned == set(hidden)


# --- cost ------------------------------------------------------------------------


def test_ten_thousand_pictures_cost_three_requests_each(tmp_path: Path) -> None:
    """List, read, copy and delete: nothing is asked twice."""
    clock = ManualClock()
    inner = MemoryStore(clock=clock)
    store = CountingStore(inner)
    bench = Bench(tmp_path, IngestHandler(), clock=clock, store=store)
    body = picture(1, size=(16, 16))
    count = 10_000
    for k in range(count):
        # Bytes after a PNG's end are ignored: every file is another one, and decodes quickly.
        inner.put(f"inbox/datasets/{NAME}/{k:05d}.png", body + k.to_bytes(4, "big"))
    inner.put(f"inbox/datasets/{NAME}/_READY", b"")
    store.reset()
    (manifest,) = work(bench)
    assert manifest["outcome"] == "done"
    assert bench.keys("inbox/datasets/") == []
    assert store.total <= 3 * count + 250, store.counts


def test_memory_and_disk_hold_a_few_pictures_at_a_time(tmp_path: Path) -> None:
    """A quarter of a gigabyte goes through without piling up."""
    store = DirectoryStore(tmp_path / "bucket", create=True)
    bench = Bench(tmp_path / "work", IngestHandler(), store=store)
    body, padding = picture(1, size=(16, 16)), bytes(1024 * 1024)
    for k in range(256):
        store.put(f"inbox/datasets/{NAME}/{k:05d}.png", body + k.to_bytes(4, "big") + padding)
    store.put(f"inbox/datasets/{NAME}/_READY", b"")
    tracemalloc.start()
    (manifest,) = work(bench)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert manifest["outcome"] == "done"
    assert peak_bytes < 64 * 1024 * 1024, peak_bytes
