"""From a URL to a store, and the mistakes that are named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from processor.errors import ConfigError
from processor.store.directory import DirectoryStore
from processor.store.opening import locate, open_store
from processor.store.s3 import S3Store

KEY = {"key_id": "0041234567890ab0000000001", "secret": "K004abcdefghijklmnopqrstuvwxyz0"}
B2 = {**KEY, "region": "us-west-004"}


class TestFolders:
    """file:///path and plain paths."""

    def test_what_names_a_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A URL, escaped or not, and what people type."""
        folder = tmp_path / "my bucket #1?"
        folder.mkdir()
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path))
        for url in (
            folder.as_uri(),
            f"file://{folder}",
            f"file://localhost{folder}",
            str(folder),
            "my bucket #1?",
            "~/my bucket #1?",
        ):
            store = open_store(url)
            assert isinstance(store, DirectoryStore)
            assert store.root == folder

    def test_two_slashes(self) -> None:
        """The commonest slip, with what was meant."""
        with pytest.raises(ConfigError, match="file:///data/bucket"):
            open_store("file://data/bucket")

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        """Said with the path and the mend."""
        with pytest.raises(ConfigError, match="mkdir -p"):
            open_store(str(tmp_path / "nothing"))


class TestBuckets:
    """b2:// and s3://."""

    @pytest.mark.parametrize(
        ("url", "settings", "endpoint"),
        [
            ("b2://bucket/a/prefix/", B2, "https://s3.us-west-004.backblazeb2.com"),
            (
                "b2://bucket/a/prefix",
                {**KEY, "endpoint_url": "s3.eu-central-003.backblazeb2.com"},
                "https://s3.eu-central-003.backblazeb2.com",
            ),
            (
                "s3://bucket/a/prefix",
                {**KEY, "endpoint_url": "http://127.0.0.1:9000/"},
                "http://127.0.0.1:9000",
            ),
        ],
    )
    def test_what_names_a_bucket(self, url: str, settings: dict[str, str], endpoint: str) -> None:
        """Nothing is sent; the endpoint and the prefix are what was meant."""
        store = open_store(url, **settings)  # type: ignore[arg-type]
        assert isinstance(store, S3Store)
        assert store.url == url.rstrip("/")
        assert store._client.meta.endpoint_url == endpoint
        if "backblaze" in endpoint:
            assert store._client.meta.region_name == endpoint.split(".")[1]
        assert KEY["secret"] not in f"{store!r} {store.url} {vars(store)}"
        store.close()

    @pytest.mark.parametrize(
        ("url", "endpoint_url", "region", "expected"),
        [
            ("s3://bucket", None, "eu-west-1", (None, "eu-west-1")),
            ("s3://bucket", None, None, (None, "us-east-1")),
            ("b2://bucket", None, "us-west-004", ("https://s3.us-west-004.backblazeb2.com", "us-west-004")),
            (
                "s3://bucket/prefix",
                "s3.eu-central-003.backblazeb2.com",
                None,
                ("https://s3.eu-central-003.backblazeb2.com", "eu-central-003"),
            ),
            ("s3://bucket", "http://minio:9000/", "eu-west-1", ("http://minio:9000", "eu-west-1")),
        ],
    )
    def test_where_it_is_for_other_programs(
        self, url: str, endpoint_url: str | None, region: str | None, expected: tuple[str | None, str]
    ) -> None:
        """As our own client has it: a region alone is Backblaze's for b2:// and AWS's for s3://."""
        assert locate(url, endpoint_url=endpoint_url, region=region) == expected

    @pytest.mark.parametrize(
        ("url", "settings", "said"),
        [
            ("b2://", B2, "names no bucket"),
            ("b2:///bucket", B2, "names no bucket"),
            ("b2://4a48fe8875c6214145260818", B2, "id, not its name"),
            ("b2://my_bucket", B2, "can't be a bucket's name"),
            ("b2://bucket?x=1", B2, r"no \? and no #"),
            ("b2://bucket/a/../b", B2, "prefix can't be used"),
            ("b2://bucket/a//b", B2, "prefix can't be used"),
            ("b2://bucket", {"region": "us-west-004"}, "application key"),
            ("b2://bucket", KEY, "needs a region"),
            ("b2://bucket", {**KEY, "region": "us-west-2"}, "no region of B2"),
            ("b2://bucket", {**B2, "key_id": "a1b2c3d4e5f6"}, "master key"),
            ("b2://bucket", {**B2, "key_id": KEY["secret"], "secret": KEY["key_id"]}, "Swap"),
            ("b2://bucket", {**B2, "secret": None}, "key_id is set, secret is not"),
            ("s3://bucket", {"secret": "x"}, "secret is set, key_id is not"),
            (
                "b2://bucket",
                {**B2, "endpoint_url": "https://s3.eu-central-003.backblazeb2.com"},
                "eu-central-003",
            ),
            (
                "b2://bucket",
                {**KEY, "endpoint_url": "https://bucket.s3.us-west-004.backblazeb2.com"},
                "names a bucket",
            ),
            (
                "b2://bucket",
                {**KEY, "endpoint_url": "https://s3.us-west-004.backblazeb2.com/bucket"},
                "names a bucket",
            ),
            ("b2://bucket", {**KEY, "endpoint_url": "https://f004.backblazeb2.com"}, "isn't B2's S3 API"),
            ("b2://bucket", {**KEY, "endpoint_url": "http://s3.us-west-004.backblazeb2.com"}, "https only"),
            ("s3://bucket", {**KEY, "endpoint_url": "ftp://host"}, "not an endpoint"),
            ("s3://bucket", {**KEY, "endpoint_url": "http://[::1"}, "not an endpoint"),
            ("https://s3.us-west-004.backblazeb2.com/bucket", B2, "an endpoint, not a bucket"),
            ("gs://bucket", {}, "no store for gs://"),
            ("b2://[", B2, "not a URL"),
        ],
    )
    def test_usual_mistakes(self, url: str, settings: dict[str, str], said: str) -> None:
        """Each is named, before anything is sent."""
        with pytest.raises(ConfigError, match=said):
            open_store(url, **settings)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("url", "endpoint_url"),
        [("b2://id:never-show@bucket", None), ("s3://bucket", "https://id:never-show@host")],
    )
    def test_a_secret_in_a_url_is_not_repeated(self, url: str, endpoint_url: str | None) -> None:
        """It is refused without being shown."""
        with pytest.raises(ConfigError, match="don't belong") as caught:
            open_store(url, endpoint_url=endpoint_url, **B2)  # type: ignore[arg-type]
        assert "never-show" not in f"{caught.value} {caught.value!r}"


def test_a_folder_needs_no_boto3(tmp_path: Path) -> None:
    """Importing it takes most of a second, which every command on a folder would pay."""
    program = (
        "import sys; from processor.store.opening import open_store; open_store(sys.argv[1]);"
        "sys.exit('boto3' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=60)
