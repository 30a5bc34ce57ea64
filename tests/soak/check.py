"""After the trouble: every manifest is compared with the files, every drop with its manifest."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from processor.errors import ErrorKind
from processor.layout import EMITTED, OUTPUTS, emitted_job_id
from processor.records import Manifest, Outcome
from processor.retry import PERMANENT
from processor.store import Store
from tests.soak.drops import Dropped

_MAX_ATTEMPTS = 3
"""Of a bare graph, which can't say more."""


@dataclass
class Findings:
    """What a check counted, and what must not be."""

    violations: list[str] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    files: int = 0
    bytes: int = 0
    epochs: int = 0
    """Leases that were taken for the jobs."""
    taken_over: int = 0
    """Jobs that were not ended by whoever took them first."""
    garbage: int = 0
    """Objects of losing attempts, for the sweep to remove a day later."""
    explained: list[str] = field(default_factory=list)
    """Jobs that ended worse than they deserved, because the trouble outlasted all tries."""

    def demand(self, holds: bool, what: str) -> None:
        """Note a violation unless something holds."""
        if not holds:
            self.violations.append(what)


def check(store: Store, dropped: list[Dropped], secret: str) -> Findings:
    """Compare drops, manifests and files, once the inbox has come to rest.

    Reads every object below the outputs once; no request goes through the faulty proxy.
    """
    found = Findings()
    contents = _contents(store, OUTPUTS)
    manifests = dict(_manifests(contents, found))
    by_drop: defaultdict[str, list[Manifest]] = defaultdict(list)
    for manifest in manifests.values():
        by_drop[manifest.drop.key].append(manifest)
    for drop in dropped:
        _check_drop(store, drop, by_drop.pop(drop.key, []), manifests, found)
    for key in by_drop:
        found.demand(key.startswith(EMITTED), f"{key}: a manifest of what nobody dropped")
    for manifest in manifests.values():
        _check_files(manifest, contents, found)
    for key, data in contents.items():
        found.demand(secret.encode() not in data, f"{key}: holds the secret")
    return found


def _contents(store: Store, prefix: str) -> dict[str, bytes]:
    return {
        item.key: _read(store, item.key, item.version or None)
        for page in store.list(prefix)
        for item in page.objects
    }


def _read(store: Store, key: str, version: str | None = None) -> bytes:
    with store.get(key, version=version) as download:
        return download.body.read()


def _manifests(contents: dict[str, bytes], found: Findings) -> Iterator[tuple[str, Manifest]]:
    for key, data in contents.items():
        if key.endswith("/manifest.json") and key.count("/") == 2:
            manifest = Manifest.model_validate_json(data)
            found.demand(key == f"{OUTPUTS}{manifest.job_id}/manifest.json", f"{key}: of another job")
            found.outcomes[manifest.outcome.value] += 1
            epoch = int(manifest.attempt.partition("-")[0])
            found.epochs += epoch
            found.taken_over += epoch > 1
            yield manifest.job_id, manifest


def _check_drop(
    store: Store, drop: Dropped, manifests: list[Manifest], all_: dict[str, Manifest], found: Findings
) -> None:
    found.demand(len(manifests) == 1, f"{drop.key}: {len(manifests)} manifests")
    if len(manifests) != 1:
        return
    manifest = manifests[0]
    found.demand(drop.version in ("", manifest.drop.version), f"{drop.key}: another version was run")
    _check_one_outcome(store, manifest, found)
    _check_settled(store, drop, manifest, found)
    if manifest.outcome is not drop.outcome:
        _explain(drop, manifest, found)
        return
    indexes = sorted(result.index for result in manifest.tasks)
    found.demand(indexes == list(range(drop.tasks)), f"{drop.key}: tasks {indexes} of {drop.tasks}")
    if manifest.outcome is Outcome.DONE:
        whole = all(result.status == "done" and result.files for result in manifest.tasks)
        found.demand(whole, f"{drop.key}: done with a task that is not")
    for place in range(1, drop.emits + 1):
        child = emitted_job_id(manifest.job_id, f"then-{place}")
        found.demand(child in all_, f"{drop.key}: what its success drops did not run")


def _check_one_outcome(store: Store, manifest: Manifest, found: Findings) -> None:
    """However often the winner's bytes were written, they were the same bytes."""
    if not store.capabilities.versions:
        return
    key = f"{OUTPUTS}{manifest.job_id}/manifest.json"
    versions = [
        _read(store, key, item.version)
        for page in store.list(key, versions=True)
        for item in page.objects
        if item.key == key and not item.delete_marker
    ]
    found.demand(len(set(versions)) == 1, f"{key}: {len(set(versions))} outcomes in {len(versions)} versions")


def _check_settled(store: Store, drop: Dropped, manifest: Manifest, found: Findings) -> None:
    folder = f"{manifest.outcome.settles_in}/{manifest.finished_at:%Y-%m-%d}/{manifest.job_id}/"
    names = {item.key.removeprefix(folder) for page in store.list(folder) for item in page.objects}
    found.demand(drop.key.rpartition("/")[2] in names, f"{drop.key}: not in {folder}")
    failed = manifest.outcome.settles_in == "failed"
    found.demand(("error.json" in names) == failed, f"{folder}: error.json for {manifest.outcome}")


def _explain(drop: Dropped, manifest: Manifest, found: Findings) -> None:
    """A worse outcome than deserved is right only if every try met with trouble."""
    kinds = {result.error.kind for result in manifest.tasks if result.error is not None}
    said = f"{drop.key}: {manifest.outcome} ({', '.join(sorted(kinds)) or 'no failed task'})"
    if manifest.outcome is Outcome.DEAD and len(manifest.attempts) >= _MAX_ATTEMPTS:
        found.explained.append(f"{said}, {len(manifest.attempts)} attempts")
    elif manifest.outcome in (Outcome.FAILED, Outcome.PARTIAL) and kinds and not kinds & PERMANENT:
        found.explained.append(said)
        found.demand(ErrorKind.INTERNAL not in kinds, f"{said}: {_errors(manifest)}")
    elif drop.outcome is Outcome.INVALID and kinds == {ErrorKind.MISSING_NODE}:
        pass  # a real ComfyUI whose nodes nobody knew before it ran
    else:
        found.violations.append(f"{said} instead of {drop.outcome}: {_errors(manifest)}")


def _errors(manifest: Manifest) -> str:
    errors = [manifest.error, *(result.error for result in manifest.tasks)]
    return json.dumps([error.what for error in errors if error is not None][:3])


def _check_files(manifest: Manifest, contents: dict[str, bytes], found: Findings) -> None:
    prefix = f"{OUTPUTS}{manifest.job_id}/"
    named = {f"{prefix}manifest.json", f"{prefix}index.html"}
    for result in manifest.tasks:
        for file in result.files:
            named.add(file.key)
            found.files += 1
            data = contents.get(file.key)
            if data is None:
                found.violations.append(f"{file.key}: named by a manifest and not there")
                continue
            found.bytes += len(data)
            same = (len(data), hashlib.sha256(data).hexdigest()) == (file.size_bytes, file.sha256)
            found.demand(same, f"{file.key}: not the file that its manifest names")
            found.demand(file.key.startswith(prefix), f"{file.key}: outside its job's folder")
    found.garbage += sum(key.startswith(prefix) and key not in named for key in contents)


def rest(store: Store) -> list[str]:
    """What is still in the inbox."""
    return [item.key for page in store.list("inbox/") for item in page.objects]
