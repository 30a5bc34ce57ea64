"""`init` and `doctor`: a set-up is made, and each fault of one is named with its mend."""

from __future__ import annotations

import os
import shutil
import tomllib
from pathlib import Path

import pytest

from processor.cli.regions import REGIONS, b2_endpoints, find_region
from processor.config import Credentials, load
from processor.errors import AccessDenied
from tests.support.b2like import B2Like, Fault, Kind
from tests.support.fixtures import KEY_ID, SECRET, make_bucket
from tests.unit.cli.conftest import Dropbatch


@pytest.fixture
def b2_bucket(b2: B2Like) -> str:
    """The name of a new bucket behind the B2-like proxy."""
    store = make_bucket(b2.url)
    b2.reset()
    return store.url.removeprefix("s3://")


def states(result: object) -> dict[str, str]:
    return {finding["name"]: finding["state"] for finding in result}  # type: ignore[attr-defined]


def test_a_folder_is_set_up_without_questions(dropbatch: Dropbatch, tmp_path: Path) -> None:
    """It is made, tried out, and the file leads back to it."""
    result = dropbatch("init", "--bucket", tmp_path / "new", "--zone", "Europe/Berlin", "--day-cap", 5)
    assert result.code == 0
    written = tomllib.loads(Path("dropbatch.toml").read_text())
    assert written == {
        "bucket": (tmp_path / "new").as_uri(),
        "zone": "Europe/Berlin",
        "max_day_cost_usd": 5.0,
    }
    assert load().store_url == (tmp_path / "new").as_uri()
    assert dropbatch("status").code == 0
    again = dropbatch("init", "--bucket", tmp_path / "other")
    assert (again.code, "--force replaces it" in again.err) == (3, True)
    assert dropbatch("init", "--bucket", tmp_path / "other", "--force").code == 0


def test_nothing_is_written_when_something_is_wrong(dropbatch: Dropbatch, tmp_path: Path) -> None:
    """And the wrong thing is named."""
    result = dropbatch("init", "--bucket", tmp_path / "new", "--zone", "Berlin")
    assert result.code == 3
    assert "--zone" in result.err
    assert not Path("dropbatch.toml").exists()


def test_a_bucket_is_set_up_and_the_secret_stays_out(
    dropbatch: Dropbatch, b2: B2Like, b2_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file holds no key; where it is read from is said, in order."""
    monkeypatch.setenv("DROPBATCH_KEY_ID", KEY_ID)
    monkeypatch.setenv("DROPBATCH_KEY", SECRET)
    bucket = ["--bucket", f"s3://{b2_bucket}", "--prefix", "team/🎨 é", "--endpoint-url", b2.url]
    result = dropbatch("init", *bucket, "--zone", "UTC")
    assert result.code == 0, result.err
    text = Path("dropbatch.toml").read_text()
    assert tomllib.loads(text)["bucket"] == f"s3://{b2_bucket}/team/🎨 é"
    assert SECRET not in text + result.out + result.err
    assert KEY_ID not in text
    assert result.err.index("DROPBATCH_KEY_ID") < result.err.index("B2_APPLICATION_KEY_ID")
    assert result.err.index("B2_APPLICATION_KEY_ID") < result.err.index("AWS_ACCESS_KEY_ID")


def test_a_key_that_may_not_write_is_named(
    dropbatch: Dropbatch, b2: B2Like, b2_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the capabilities that it needs; exit code as for any refusing store."""
    monkeypatch.setenv("DROPBATCH_KEY_ID", KEY_ID)
    monkeypatch.setenv("DROPBATCH_KEY", SECRET)
    b2.add(Fault("PutObject", Kind.DENIED, times=100))
    result = dropbatch("init", "--bucket", f"s3://{b2_bucket}", "--endpoint-url", b2.url, "--zone", "UTC")
    assert result.code == 4
    assert "writeFiles" in result.err
    assert not Path("dropbatch.toml").exists()


def test_without_a_key_it_says_how_to_give_one(dropbatch: Dropbatch) -> None:
    """Nobody is at the terminal to be asked."""
    result = dropbatch("init", "--bucket", "b2://renders")
    assert result.code == 2
    assert "DROPBATCH_KEY_ID" in result.err


def test_the_region_is_the_one_that_lists_the_bucket(b2: B2Like, b2_bucket: str) -> None:
    """All are asked at once; one that is down or refuses is none."""
    endpoints = {"us-west-000": "http://127.0.0.1:9", "us-west-004": b2.url}
    key = Credentials(KEY_ID, SECRET, "test")
    assert find_region(b2_bucket, "", key, endpoints) == "us-west-004"
    assert set(b2_endpoints()) == set(REGIONS)
    assert b2_endpoints()["eu-central-003"] == "https://s3.eu-central-003.backblazeb2.com"


def test_the_most_telling_answer_of_the_regions_is_passed_on(b2: B2Like) -> None:
    """A region that knows the key but not the bucket says more than one that is silent."""
    endpoints = {"us-west-000": "http://127.0.0.1:9", "us-west-004": b2.url}
    key = Credentials(KEY_ID, SECRET, "test")
    with pytest.raises(AccessDenied, match="no-such-bucket in us-west-004: there is no such bucket"):
        find_region("no-such-bucket", "", key, endpoints)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["new", "gradient", "-o", "missing/x.json"], "missing/x.json: No such file or directory"),
        (["init", "--config", "missing/d.toml", "--bucket", "b", "--zone", "UTC"], "missing/d.toml: No such"),
        (["init", "--bucket", "/dev/null/b", "--zone", "UTC"], "/dev/null/b: Not a directory"),
        (["run", "--once"], "/dev/null/work"),
    ],
)
def test_a_path_that_can_not_be_is_named_and_no_defect(
    dropbatch: Dropbatch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: list[str], says: str
) -> None:
    """What only this machine's user can mend is not called ours."""
    monkeypatch.delenv("DROPBATCH_HANDLERS")
    (tmp_path / "here" / "b").mkdir()
    if command[0] == "run":
        monkeypatch.setenv("DROPBATCH_BUCKET", "b")
        monkeypatch.setenv("DROPBATCH_WORK_DIR", "/dev/null/work")
    result = dropbatch(*command)
    assert result.code == 1, result.err
    assert says in result.err
    assert "defect" not in result.err


def test_an_empty_bucket_is_no_folder(dropbatch: Dropbatch) -> None:
    """A script's empty variable must not make the current directory a bucket."""
    for more in ([], ["--prefix", "x"]):
        result = dropbatch("init", "--bucket", "", "--zone", "UTC", *more)
        assert (result.code, "--bucket: a bucket's name is empty" in result.err) == (3, True)
    assert dropbatch("status", "--bucket", "").code == 3
    assert list(Path().iterdir()) == []


def test_doctor_of_a_good_folder(dropbatch: Dropbatch, bucket: Path) -> None:
    """All well, nothing left behind."""
    result = dropbatch("doctor", "--json")
    assert result.code == 0
    assert "fail" not in states(result.json).values()
    assert list(bucket.rglob("doctor-*")) == []
    assert "answers in" in dropbatch("doctor").out


def test_doctor_names_each_fault_with_its_mend(
    dropbatch: Dropbatch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One fault hides no other."""
    monkeypatch.setenv("DROPBATCH_BUCKET", str(tmp_path / "missing"))
    monkeypatch.setenv("DROPBATCH_MAX_TASK", "3")
    monkeypatch.setenv("COMFYUI_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("DROPBATCH_HANDLERS", '{"render": "no.such:Thing"}')
    result = dropbatch("doctor", "--json")
    assert result.code == 1
    found = states(result.json)
    assert found["bucket"] == found["comfyui"] == found["handlers"] == "fail"
    mends = [finding["mend"] for finding in result.json if finding["state"] == "warn"]
    assert "Did you mean DROPBATCH_MAX_TASKS?" in mends


@pytest.mark.usefixtures("bucket")
def test_doctor_looks_at_every_bucket(
    dropbatch: Dropbatch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All was well, and `run` did not start, or the first training failed."""
    (tmp_path / "models").mkdir()
    monkeypatch.setenv("DROPBATCH_MODELS_BUCKET", str(tmp_path / "models"))
    monkeypatch.setenv("DROPBATCH_DATASETS_BUCKET", str(tmp_path / "missing"))
    found = {finding["name"]: finding for finding in dropbatch("doctor", "--json").json}
    assert found["models bucket"]["state"] == "ok"
    assert found["datasets bucket"]["state"] == "fail"
    assert "no such folder" in found["datasets bucket"]["what"]


def test_doctor_of_a_b2_bucket(
    dropbatch: Dropbatch, b2: B2Like, b2_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Versions, no put-if-absent, 403 for what is missing: each with what follows."""
    monkeypatch.setenv("DROPBATCH_KEY_ID", KEY_ID)
    monkeypatch.setenv("DROPBATCH_KEY", SECRET)
    result = dropbatch("doctor", "--bucket", f"s3://{b2_bucket}", "--endpoint-url", b2.url, "--json")
    found = {finding["name"]: finding for finding in result.json}
    assert result.code == 0, result.json
    assert found["key"]["what"] == "from DROPBATCH_KEY_ID"
    assert found["versions"]["what"].startswith("every drop keeps its version")
    assert "comfy_outputs/" in found["large files"]["mend"]
    assert "not offered" in found["put-if-absent"]["what"]
    assert found["missing keys"]["state"] == "warn"
    assert SECRET not in result.out + result.err


def test_doctor_looks_at_a_comfyui_checkout(
    dropbatch: Dropbatch, bucket: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its version without starting it; a wrong folder is said."""
    monkeypatch.setenv("COMFYUI_DIR", str(tmp_path))
    assert states(dropbatch("doctor", "--json").json)["comfyui"] == "fail"
    (tmp_path / "main.py").touch()
    (tmp_path / "comfyui_version.py").write_text('__version__ = "0.3.64"\n')
    found = {finding["name"]: finding for finding in dropbatch("doctor", "--json").json}
    assert found["comfyui"]["what"].startswith("0.3.64 in ")


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("WEBHOOK_URL", "https://example.test", "16 bytes"),
        ("SLACK_CHANNEL", "C1", "a bot's token"),
        ("NOTIFY_ON", "don", "there is no event 'don'"),
    ],
)
def test_doctor_finds_the_notices_that_run_would_refuse(
    dropbatch: Dropbatch, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str
) -> None:
    """All was well, and `run` did not start."""
    found = {finding["name"]: finding for finding in dropbatch("doctor", "--json").json}
    assert (found["notices"]["state"], found["notices"]["what"]) == ("ok", "nobody is told")
    monkeypatch.setenv(f"DROPBATCH_{variable}", value)
    assert dropbatch("run", "--once").code == 3
    result = dropbatch("doctor", "--json")
    found = {finding["name"]: finding for finding in result.json}
    assert (result.code, found["notices"]["state"]) == (1, "fail")
    assert says in str(found["notices"])


def test_doctor_asks_who_rules_a_moved_bucket_as_run_does(
    dropbatch: Dropbatch, bucket: Path, tmp_path: Path
) -> None:
    """With its leases it may be anywhere; a copy without them is nobody's."""
    assert dropbatch("run", "--once").code == 0
    moved, copied = tmp_path / "moved", tmp_path / "copied"
    shutil.copytree(bucket, copied, ignore=shutil.ignore_patterns(".dropbatch"))
    bucket.rename(moved)
    for place, state, code in ((moved, "ok", 0), (copied, "fail", 4)):
        result = dropbatch("doctor", "--json", "--bucket", place)
        found = {finding["name"]: finding for finding in result.json}
        assert (found["authority"]["state"], result.code) == (state, bool(code))
        assert dropbatch("run", "--once", "--bucket", place).code == code
    assert not (copied / ".dropbatch/leases/authority").exists()


def test_this_test_run_sees_no_key_of_a_developer() -> None:
    """The tests above rely on it."""
    assert not any(name.startswith(("B2_", "AWS_")) for name in os.environ)
