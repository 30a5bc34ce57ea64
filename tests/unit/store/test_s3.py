"""S3Store against a server that does what B2 and networks do."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from processor.errors import (
    AccessDenied,
    AlreadyExists,
    CapReached,
    NotFound,
    StoreError,
    StoreUnavailable,
)
from processor.store import Capabilities, read_bytes
from processor.store.s3 import S3Store
from tests.support import rclone as rclone_keys
from tests.support.b2like import B2Like, Fault, Kind
from tests.support.fixtures import KEY_ID, SECRET, make_bucket
from tests.support.moto import SerialMotoServer

MIB = 1 << 20
B2_CAPABILITIES = Capabilities(versions=True, put_if_absent=False, missing_is_403=True)


@pytest.fixture(scope="module")
def patient(b2_server: B2Like) -> Iterator[S3Store]:
    """A store that retries once, with capabilities known beforehand."""
    b2_server.reset()
    store = make_bucket(b2_server.url, capabilities=B2_CAPABILITIES, max_attempts=2)
    yield store
    store.close()


@pytest.fixture(scope="module")
def hasty(patient: S3Store, b2_server: B2Like) -> Iterator[S3Store]:
    """A store on the same bucket that never retries, so that each fault shows."""
    store = S3Store(
        patient._bucket,
        endpoint_url=b2_server.url,
        key_id=KEY_ID,
        secret=SECRET,
        capabilities=B2_CAPABILITIES,
        max_attempts=1,
        part_bytes=5 * MIB,
    )
    yield store
    store.close()


def read(store: S3Store, key: str) -> bytes:
    return read_bytes(store, key, limit_bytes=64 * MIB)


def fresh(store: S3Store, b2: B2Like, *, below: str = "") -> S3Store:
    """A store on the same bucket that knows nothing of its capabilities."""
    return S3Store(store._bucket, below, endpoint_url=b2.url, key_id=KEY_ID, secret=SECRET, max_attempts=1)


class TestProbe:
    """Capabilities, found by trying."""

    def test_b2(self, patient: S3Store, b2: B2Like) -> None:
        """501 to the condition, versions in the reply, 403 for what is missing: 4 requests,
        once, and nothing is left."""
        store = fresh(patient, b2, below="probed")
        assert store.capabilities == store.capabilities == B2_CAPABILITIES
        assert b2.counts == {"PutObject": 2, "HeadObject": 1, "DeleteObject": 1}
        assert list(next(store.list("", versions=True)).objects) == []
        store.close()

    def test_a_server_that_ignores_conditions(self, patient: S3Store, b2: B2Like) -> None:
        """A second 200 proves that there is no put-if-absent; both versions go."""
        b2.ignore_conditions = True
        b2.missing_is_403 = False
        store = fresh(patient, b2, below="ignoring")
        assert store.capabilities == Capabilities(versions=True, put_if_absent=False)
        assert b2.counts == {"PutObject": 2, "HeadObject": 1, "DeleteObject": 2}
        assert list(next(store.list("", versions=True)).objects) == []
        store.close()

    def test_a_key_that_may_only_read(self, patient: S3Store, b2: B2Like) -> None:
        """No write is no error: models may lie in a bucket of somebody else's."""
        b2.add(Fault("PutObject", Kind.DENIED, times=-1))
        store = fresh(patient, b2)
        assert store.capabilities == B2_CAPABILITIES
        store.close()

    def test_an_outage_is_not_remembered(self, patient: S3Store, b2: B2Like) -> None:
        """A probe that failed in passing is tried again."""
        b2.add(Fault("PutObject", Kind.INTERNAL_ERROR))
        store = fresh(patient, b2)
        with pytest.raises(StoreUnavailable):
            _ = store.capabilities
        assert store.capabilities == B2_CAPABILITIES
        store.close()

    def test_a_bucket_that_is_not_there(self, moto: SerialMotoServer) -> None:
        """A wrong bucket is said, and never looks like an empty one."""
        store = S3Store("no-such", endpoint_url=moto.url, key_id=KEY_ID, secret=SECRET)
        with pytest.raises(AccessDenied, match="no such bucket"):
            _ = store.capabilities
        with pytest.raises(AccessDenied, match="no such bucket"):
            list(store.list("inbox/"))
        store.close()


class TestForbidden:
    """403 is never read as absence by itself."""

    def test_a_cap_is_said(self, hasty: S3Store, b2: B2Like) -> None:
        """A daily cap on reading: not absent, and the mend is where caps are raised."""
        hasty.put("capped", b"x")
        b2.add(Fault("GetObject", Kind.CAP))
        with pytest.raises(CapReached, match="Caps & Alerts"):
            hasty.get("capped")

    def test_a_head_that_is_denied(self, hasty: S3Store, b2: B2Like) -> None:
        """HEAD has no message. The key is listed, so it is denied, not absent."""
        hasty.put("denied", b"x")
        b2.add(Fault("HeadObject", Kind.DENIED))
        with pytest.raises(AccessDenied, match="listBuckets, listFiles, readFiles"):
            hasty.stat("denied")
        assert b2.counts == {"PutObject": 1, "HeadObject": 1, "ListObjectVersions": 1}

    def test_absence_needs_a_listing(self, hasty: S3Store, b2: B2Like) -> None:
        """A missing key answers 403; if the listing is denied too, nothing is known."""
        with pytest.raises(NotFound):
            hasty.stat("missing")
        b2.add(Fault("ListObjectVersions", Kind.DENIED), Fault("ListObjectVersions", Kind.INTERNAL_ERROR))
        with pytest.raises(AccessDenied):
            hasty.stat("missing")
        with pytest.raises(StoreUnavailable):
            hasty.stat("missing")

    def test_where_missing_is_404_a_403_is_a_denial(self, patient: S3Store, b2: B2Like) -> None:
        """No listing is asked for where the probe saw a 404."""
        store = S3Store(
            patient._bucket,
            endpoint_url=b2.url,
            key_id=KEY_ID,
            secret=SECRET,
            capabilities=Capabilities(versions=True, put_if_absent=False),
            max_attempts=1,
        )
        with pytest.raises(AccessDenied):
            store.stat("missing")
        assert b2.counts == {"HeadObject": 1}
        store.close()

    def test_writes_that_are_denied(self, hasty: S3Store, b2: B2Like) -> None:
        """The capabilities that a key needs are named."""
        b2.add(Fault("PutObject", Kind.DENIED), Fault("DeleteObject", Kind.DENIED))
        with pytest.raises(AccessDenied, match="writeFiles"):
            hasty.put("k", b"")
        with pytest.raises(AccessDenied, match="deleteFiles"):
            hasty.delete("k", version="v")


class TestPassingFaults:
    """What passes is retried; what doesn't, is said as unknown."""

    @pytest.mark.parametrize(
        "kind", [Kind.INTERNAL_ERROR, Kind.CUT_BEFORE, Kind.CUT_AFTER, Kind.INTERNAL_ERROR_AFTER]
    )
    def test_one_fault_is_retried(self, patient: S3Store, b2: B2Like, kind: Kind) -> None:
        """One lost request or reply doesn't show."""
        b2.add(Fault("PutObject", kind, key=f"retried-{kind}"))
        patient.put(f"retried-{kind}", b"x")
        assert read(patient, f"retried-{kind}") == b"x"
        assert b2.counts["PutObject"] == 2

    @pytest.mark.parametrize("kind", [Kind.INTERNAL_ERROR, Kind.CUT_BEFORE])
    def test_a_lasting_fault_is_unavailable(self, patient: S3Store, b2: B2Like, kind: Kind) -> None:
        """Every operation says so, and none takes it for absence."""
        store = fresh(patient, b2)
        store._capabilities = B2_CAPABILITIES
        b2.add(Fault("*", kind, times=-1))
        for call in (
            lambda: store.put("k", b""),
            lambda: store.stat("k"),
            lambda: store.get("k"),
            lambda: store.copy("k", "l"),
            lambda: store.delete("k", version="v"),
            lambda: next(store.list("")),
        ):
            with pytest.raises(StoreUnavailable):
                call()
        store.close()

    def test_a_lasting_slow_down(self, patient: S3Store, b2: B2Like) -> None:
        """So is an overload that doesn't end; on its own, as the client slows down for it."""
        store = fresh(patient, b2)
        store._capabilities = B2_CAPABILITIES
        b2.add(Fault("PutObject", Kind.SLOW_DOWN))
        with pytest.raises(StoreUnavailable, match="no tomes available"):
            store.put("k", b"")
        store.close()

    def test_a_burst_of_slow_down(self, patient: S3Store, b2: B2Like) -> None:
        """B2's normal answer under load is survived."""
        b2.add(Fault("GetObject", Kind.SLOW_DOWN))
        patient.put("slow", b"x")
        assert read(patient, "slow") == b"x"

    def test_nothing_listens(self) -> None:
        """A refused connection is unavailable, with what to check."""
        store = S3Store(
            "bucket", endpoint_url="http://127.0.0.1:9", key_id=KEY_ID, secret=SECRET, max_attempts=1
        )
        with pytest.raises(StoreUnavailable, match="endpoint"):
            store.stat("k")
        store.close()

    def test_no_error_shows_a_secret(self, hasty: S3Store, b2: B2Like) -> None:
        """Whatever goes wrong, the message and its causes keep quiet."""
        for kind in (Kind.DENIED, Kind.CAP, Kind.INTERNAL_ERROR, Kind.CUT_BEFORE):
            b2.add(Fault("PutObject", kind))
            with pytest.raises(StoreError) as caught:
                hasty.put("k", b"")
            error: BaseException | None = caught.value
            while error is not None:
                assert SECRET not in f"{error!r} {error} {vars(error)}"
                error = error.__cause__ or error.__context__


class TestDownload:
    """A body arrives whole or not at all."""

    CONTENT = bytes(range(256)) * 8192

    def test_a_truncated_body_goes_on_where_it_broke(self, hasty: S3Store, b2: B2Like) -> None:
        """Half of each reply is lost three times; what is read is whole."""
        hasty.put("big", self.CONTENT)
        b2.add(Fault("GetObject", Kind.TRUNCATED, times=3))
        assert read(hasty, "big") == self.CONTENT
        assert b2.counts["GetObject"] == 4

    def test_a_body_that_breaks_often_but_gets_on(self, hasty: S3Store, b2: B2Like) -> None:
        """Only breaks on the same few MiB count: a large model over a poor line arrives."""
        content = bytes(48 * MIB)
        hasty.put("big", content)
        b2.add(Fault("GetObject", Kind.TRUNCATED, times=4))
        assert read(hasty, "big") == content
        assert b2.counts["GetObject"] == 5

    def test_a_body_that_keeps_breaking(self, hasty: S3Store, b2: B2Like) -> None:
        """It is an error, never a short read taken for the end."""
        hasty.put("big", self.CONTENT)
        b2.add(Fault("GetObject", Kind.TRUNCATED, times=-1))
        with hasty.get("big") as download, pytest.raises(StoreUnavailable, match="broke off"):
            download.body.read()

    def test_it_goes_on_with_the_same_version(self, hasty: S3Store, b2: B2Like) -> None:
        """A re-upload amid a download doesn't mix into it."""
        hasty.put("big", self.CONTENT)
        b2.add(Fault("GetObject", Kind.TRUNCATED))
        with hasty.get("big") as download:
            hasty.put("big", b"\0" * len(self.CONTENT))
            assert download.body.read() == self.CONTENT

    def test_without_versions_a_replaced_object_is_an_error(self, moto: SerialMotoServer) -> None:
        """The rest of another object isn't joined to the start of the first."""
        store = make_bucket(moto.url)
        store.put("big", self.CONTENT)
        with store.get("big") as download:
            store.put("big", b"\0" * len(self.CONTENT))
            raw = download.body.raw  # type: ignore[attr-defined]
            raw._stream.close()
            with pytest.raises(StoreUnavailable, match="replaced"):
                raw._resume(None)
        store.close()


class TestParts:
    """Large objects."""

    @pytest.fixture
    def large(self, tmp_path: Path) -> Path:
        path = tmp_path / "large.safetensors"
        path.write_bytes(bytes(range(256)) * (11 * MIB // 256) + b"tail")
        return path

    def test_a_large_file_goes_up_in_parts(self, hasty: S3Store, b2: B2Like, large: Path) -> None:
        """11 MiB in parts of 5; the reply names the version."""
        info = hasty.put("large", large)
        assert b2.counts == {"CreateMultipartUpload": 1, "UploadPart": 3, "CompleteMultipartUpload": 1}
        assert hasty.stat("large").version == info.version
        assert info.size_bytes == large.stat().st_size
        assert hashlib.sha256(read(hasty, "large")).digest() == hashlib.sha256(large.read_bytes()).digest()

    def test_no_part_is_held_in_memory(self, rclone: str, large: Path) -> None:
        """Four are on their way at a time, which would be a quarter of a gigabyte."""
        store = make_bucket(rclone, part_bytes=5 * MIB, key_id=rclone_keys.KEY_ID, secret=rclone_keys.SECRET)
        store.put("warm", large)  # what boto3 loads with its first upload in parts is not the upload's
        tracemalloc.start()
        try:
            store.put("large", large)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak_bytes < 10 * MIB
        store.close()

    def test_a_part_that_fails_leaves_nothing(self, hasty: S3Store, b2: B2Like, large: Path) -> None:
        """The upload is aborted: parts that nobody completes are billed."""
        b2.add(Fault("UploadPart", Kind.INTERNAL_ERROR, after=1))
        with pytest.raises(StoreUnavailable):
            hasty.put("unfinished", large)
        assert b2.counts["AbortMultipartUpload"] == 1
        with pytest.raises(NotFound):
            hasty.stat("unfinished")
        uploads = hasty._client.list_multipart_uploads(Bucket=hasty._bucket)
        assert uploads.get("Uploads", []) == []

    def test_a_large_copy_goes_in_parts(self, patient: S3Store, b2: B2Like, large: Path) -> None:
        """Above the limit of one request (here 6 MiB), a named version is copied in parts."""
        store = S3Store(
            patient._bucket,
            endpoint_url=b2.url,
            key_id=KEY_ID,
            secret=SECRET,
            capabilities=B2_CAPABILITIES,
            max_copy_bytes=6 * MIB,
        )
        version = store.put("large", large).version
        store.put("large", b"newer")
        b2.counts.clear()
        info = store.copy("large", "done/large", version=version)
        assert b2.counts == {
            "HeadObject": 1,
            "CreateMultipartUpload": 1,
            "UploadPartCopy": 2,
            "CompleteMultipartUpload": 1,
        }
        assert read(store, "done/large") == large.read_bytes()
        assert store.stat("done/large").version == info.version
        store.close()

    def test_a_copy_in_parts_is_of_one_object(
        self, moto: SerialMotoServer, large: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without versions, too: each part is asked for by the ETag that was seen."""
        store = make_bucket(moto.url, versions=False, max_copy_bytes=6 * MIB)
        store.put("large", large)
        etag = store._client.head_object(Bucket=store._bucket, Key="large")["ETag"]
        copy_part, asked = store._client.upload_part_copy, []

        def listened(**arguments: Any) -> Any:
            asked.append(arguments["CopySourceIfMatch"])  # moto doesn't heed it
            return copy_part(**arguments)

        monkeypatch.setattr(store._client, "upload_part_copy", listened)
        store.copy("large", "copied")
        assert asked == [etag, etag]
        store.close()

    def test_parts_if_absent(self, moto: SerialMotoServer, large: Path) -> None:
        """The condition holds for large files too."""
        store = make_bucket(moto.url, part_bytes=5 * MIB)
        store.put("large", large, if_absent=True)
        with pytest.raises(AlreadyExists):
            store.put("large", large, if_absent=True)
        store.close()


class TestCopy:
    """One request for what was read before: the reply's ETag tells whose bytes it has."""

    def test_what_was_read_is_copied_with_one_request(self, hasty: S3Store, b2: B2Like) -> None:
        """The size comes from the reading; another version that stands by now is not copied."""
        version = hasty.put("inbox/a.json", b"first").version
        hasty.get("inbox/a.json").body.close()
        hasty.put("inbox/a.json", b"the second")
        b2.counts.clear()
        info = hasty.copy("inbox/a.json", "done/a.json", version=version)
        assert b2.counts == {"CopyObject": 1}
        assert info.size_bytes == 5
        assert read(hasty, "done/a.json") == b"first"
        assert hasty.stat("done/a.json").version == info.version

    def test_an_unlike_etag_is_looked_into(self, hasty: S3Store, b2: B2Like, tmp_path: Path) -> None:
        """What went up in parts has another ETag than its copy: the copy is asked for its size."""
        path = tmp_path / "parts.bin"
        path.write_bytes(bytes(9 * MIB))
        version = hasty.put("parts", path).version
        hasty.stat("parts", version=version)
        b2.counts.clear()
        assert hasty.copy("parts", "copied", version=version).size_bytes == 9 * MIB
        assert b2.counts == {"CopyObject": 1, "HeadObject": 1}

    def test_a_version_that_is_gone_is_not_found(self, hasty: S3Store) -> None:
        """Remembering it doesn't bring it back."""
        version = hasty.put("gone", b"x").version
        hasty.stat("gone")
        hasty.delete("gone", version=version)
        with pytest.raises(NotFound):
            hasty.copy("gone", "elsewhere", version=version)


class TestListingLag:
    """The proxy's own behaviour, which other tests build on."""

    def test_new_versions_appear_late(self, hasty: S3Store, b2: B2Like) -> None:
        """A new key is missing from so many listings, but can be read at once; of a
        replaced one the older version is listed as the newest."""
        old = hasty.put("lag/k", b"old").version
        b2.lag_listings(2)
        new = hasty.put("lag/k", b"new").version
        hasty.put("lag/l", b"")
        assert read(hasty, "lag/k") == b"new"

        def seen() -> list[tuple[str, str]]:
            return [(each.key, each.version) for page in hasty.list("lag/") for each in page.objects]

        assert seen() == [("lag/k", old)]
        assert seen() == [("lag/k", old)]
        assert [key for key, _ in seen()] == ["lag/k", "lag/l"]
        assert seen()[0][1] == new

    def test_told_to_catch_up(self, hasty: S3Store, b2: B2Like) -> None:
        """Or until told."""
        b2.lag_listings(1000)
        hasty.put("late/k", b"")
        assert next(hasty.list("late/")).objects == []
        b2.catch_up()
        assert [each.key for each in next(hasty.list("late/")).objects] == ["late/k"]


def test_pages_have_the_servers_date(hasty: S3Store, b2: B2Like) -> None:
    """Leases count by it, so it must be the store's clock and not ours."""
    b2.date = "Fri, 01 Jan 2038 00:00:00 GMT"
    assert next(hasty.list("")).date.year == 2038
    assert hasty.put("dated", b"").modified.year == 2038


def test_keys_that_are_none_are_not_listed(hasty: S3Store) -> None:
    """Some consoles make an empty `folder/`."""
    hasty._client.put_object(Bucket=hasty._bucket, Key="console/folder/", Body=b"")
    hasty.put("console/folder/file", b"")
    assert [each.key for each in next(hasty.list("console/")).objects] == ["console/folder/file"]


def test_a_prefix_is_a_root(hasty: S3Store) -> None:
    """Keys are relative to it, whatever lies beside."""
    below = hasty.below("root").below("deeper")
    below.put("k", b"x")
    hasty.put("root/deeper-not/k", b"")
    assert below.url.endswith("/root/deeper")
    assert [each.key for page in below.list("") for each in page.objects] == ["k"]
    assert read(hasty, "root/deeper/k") == b"x"


def test_the_probe_runs_once_for_many_threads(patient: S3Store, b2: B2Like) -> None:
    """Threads that come together wait for one probe."""
    store = fresh(patient, b2)
    with ThreadPoolExecutor(5) as pool:
        found = list(pool.map(lambda _: store.capabilities, range(5)))
    assert found == [B2_CAPABILITIES] * 5
    assert b2.counts["PutObject"] == 2
    store.close()
