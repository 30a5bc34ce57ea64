"""Many files at once: by rclone, into a bucket, under the keys that we would have given them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from handlers.ingest.command import import_folder
from processor.cli.uploads import drop_dataset, rclone_copier
from processor.config import Credentials, Settings
from processor.datasets import READY
from processor.errors import JobInvalid, StoreUnavailable
from processor.rclone import environment
from processor.store import ObjectInfo
from processor.store.memory import MemoryStore
from tests.support import rclone as rclone_server
from tests.support.b2like import B2Like, Fault, Kind
from tests.support.fixtures import KEY_ID, SECRET, make_bucket

NAMES = [
    "plain.png",
    "naïve café.png",
    "100% #1.txt",
    "sub/dir/a b.png",
    "\uff0edot.png",
    "\u201bquote.png",
    "-flag.png",
]


def photos(folder: Path) -> list[Path]:
    """A folder of odd names, and as many more as make it worth another program."""
    files = [folder / name for name in [*NAMES, *(f"{number:04}.png" for number in range(500))]]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(file.name.encode())
    return files


def settings(url: str, bucket: str) -> Settings:
    return Settings(bucket=f"s3://{bucket}/a prefix", endpoint_url=url, region="us-east-1")


def test_rclone_gives_files_the_keys_that_they_are_named(
    tmp_path: Path, rclone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the letter, whatever rclone would rather escape; sizes are told, the marker is last."""
    monkeypatch.setenv("DROPBATCH_KEY_ID", rclone_server.KEY_ID)
    monkeypatch.setenv("DROPBATCH_KEY", rclone_server.SECRET)
    files = photos(tmp_path)
    whole = make_bucket(rclone, key_id=rclone_server.KEY_ID, secret=rclone_server.SECRET)
    store = whole.below("a prefix")
    copier = rclone_copier(settings(rclone, whole.url.rpartition("/")[2]))
    assert copier is not None
    moved: list[int] = []
    dropped = drop_dataset(store, tmp_path, files, name="faces", moved=moved.append, copier=copier)
    assert dropped.files == len(files)
    assert sum(moved) == sum(file.stat().st_size for file in files)
    found = {item.key for page in store.list("inbox/") for item in page.objects}
    assert {f"inbox/datasets/faces/{name}" for name in [*NAMES, "_READY"]} <= found
    with store.get("inbox/datasets/faces/sub/dir/a b.png") as download:
        assert download.body.read() == b"a b.png"
    whole.close()


def test_what_rclone_says_is_said_on_and_no_marker_is_left(
    tmp_path: Path, rclone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong key: the folder is no complete drop, and says what it lacks."""
    whole = make_bucket(rclone, key_id=rclone_server.KEY_ID, secret=rclone_server.SECRET)
    monkeypatch.setenv("DROPBATCH_KEY_ID", rclone_server.KEY_ID)
    monkeypatch.setenv("DROPBATCH_KEY", "wrong")
    copier = rclone_copier(settings(rclone, whole.url.rpartition("/")[2]))
    with pytest.raises(StoreUnavailable, match="rclone ended with") as caught:
        drop_dataset(whole, tmp_path, photos(tmp_path), name="faces", moved=lambda _: None, copier=copier)
    assert "wrong" not in str(caught.value)
    left = [item.key for page in whole.list("inbox/") for item in page.objects]
    assert left == ["inbox/datasets/faces/_manifest.json"]
    whole.close()


def test_what_rclone_could_not_send_is_sent_without_it(
    b2: B2Like, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing else is sent twice."""
    monkeypatch.setenv("DROPBATCH_KEY_ID", KEY_ID)
    monkeypatch.setenv("DROPBATCH_KEY", SECRET)
    store = make_bucket(b2.url)
    b2.reset()
    b2.add(Fault("PutObject", Kind.DENIED, key="0007.png"))
    url = f"s3://{store.url.rpartition('/')[2]}"
    copier = rclone_copier(Settings(bucket=url, endpoint_url=b2.url, region="us-east-1"))
    if copier is None:
        pytest.skip("needs rclone: pip install 'dropbatch[rclone]'")
    files = photos(tmp_path)
    moved: list[int] = []
    drop_dataset(store, tmp_path, files, name="faces", moved=moved.append, copier=copier)
    found = [item.key for page in store.list("inbox/", versions=True) for item in page.objects]
    assert len(found) == len(set(found)) == len(files) + 2
    assert sum(moved) == sum(file.stat().st_size for file in files)
    store.close()


def test_rclone_finds_the_network_as_we_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a company's proxy, with its certificate; of other variables it sees none."""
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "localhost")
    monkeypatch.setenv("AWS_CA_BUNDLE", "/etc/company.pem")
    monkeypatch.setenv("DROPBATCH_WEBHOOK_SECRET", "not its business")
    key = Credentials("id", "key", "DROPBATCH_KEY_ID")
    environ = environment(endpoint_url="https://s3.example", region="us-east-1", key=key)
    assert environ["https_proxy"] == "http://proxy:3128"
    assert environ["NO_PROXY"] == "localhost"
    assert environ["RCLONE_CA_CERT"] == "/etc/company.pem"
    assert not [name for name in environ if name.startswith("DROPBATCH")]


def test_a_folder_needs_no_rclone(tmp_path: Path) -> None:
    """Nor does a bucket whose key boto3 finds in its own places: rclone isn't shown those."""
    assert rclone_copier(Settings(bucket=str(tmp_path))) is None
    assert rclone_copier(Settings(bucket="s3://photos", region="us-east-1")) is None


class _Watched(MemoryStore):
    """Tells which `_READY` stood while a file went up."""

    def __init__(self, *, versions: bool = True) -> None:
        super().__init__(versions=versions)
        self.ready: list[bool] = []

    def put(self, key: str, *args: Any, **kwargs: Any) -> ObjectInfo:
        self._look(key)
        return super().put(key, *args, **kwargs)

    def copy(self, source: str, target: str, *args: Any, **kwargs: Any) -> ObjectInfo:
        self._look(target)
        return super().copy(source, target, *args, **kwargs)

    def _look(self, key: str) -> None:
        if not key.endswith(READY):
            keys = {item.key for page in self.list("inbox/") for item in page.objects}
            self.ready.append(f"inbox/datasets/faces/{READY}" in keys)


@pytest.mark.parametrize("versions", [True, False])
@pytest.mark.parametrize("way", ["drop", "import"])
def test_a_folder_that_waits_is_not_complete_while_more_goes_up(
    tmp_path: Path, way: str, versions: bool
) -> None:
    """The marker of the drop before would make whole what has come so far."""
    (tmp_path / "1.png").write_bytes(b"x")
    store = _Watched(versions=versions)
    store.put("elsewhere/1.png", b"x")
    for _ in range(3):  # the third finds a marker that has an older version
        if way == "drop":
            drop_dataset(store, tmp_path, [tmp_path / "1.png"], name="faces", moved=lambda _: None)
        else:
            import_folder(store, "elsewhere", name="faces")
        store.put(f"inbox/datasets/faces/{READY}", b"")
    assert store.ready == [False] * 7
    assert store.stat(f"inbox/datasets/faces/{READY}").size_bytes == 0


def test_no_file_goes_up_under_a_name_that_is_no_datasets() -> None:
    """One place holds it for every command: a watched folder's, too."""
    store = MemoryStore()
    with pytest.raises(JobInvalid, match="no possible name"):
        drop_dataset(store, Path(), [Path("1.png")], name="portraits/zoe", moved=lambda _: None)
    assert not [item for page in store.list("") for item in page.objects]
