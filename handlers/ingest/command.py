"""`dropbatch datasets`: what is archived, and folders that already lie in the bucket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from processor.cli import console
from processor.cli.exits import UsageError
from processor.cli.options import Bucket, Config, EndpointUrl, Json, load_settings

if TYPE_CHECKING:
    from processor.store import Store

_ACTIONS = ("ls", "import")


def command(
    action: Annotated[str, typer.Argument(help="ls or import.", metavar="ACTION")] = "ls",
    folder: Annotated[
        str, typer.Argument(help="To import: a key prefix, as `aitoolkit_datasets/zoe`.", metavar="FOLDER")
    ] = "",
    *,
    name: Annotated[str | None, typer.Option(help="The dataset's name; the folder's otherwise.")] = None,
    as_json: Json = False,
    bucket: Bucket = None,
    endpoint_url: EndpointUrl = None,
    config: Config = None,
) -> None:
    """List the archived datasets, or take in a folder that already lies in the bucket.

    An import copies inside the bucket, to inbox/datasets/, and leaves the folder as it is; from
    there on it is a drop like any other.

    \b
    Example:
      dropbatch datasets
      dropbatch datasets import aitoolkit_datasets/zoe
    """
    if action not in _ACTIONS:
        raise UsageError(f"no such action: {action}; it is one of {', '.join(_ACTIONS)}")
    from processor.buckets import open_stores

    stores = open_stores(load_settings(config, bucket, endpoint_url))
    if action == "import":
        taken = import_folder(stores.main, folder, name=name)
        if as_json:
            console.print_json(taken)
        else:
            console.out().print(f"{taken['files']} files now lie in {escape(taken['key'])}")
        return
    found = list_datasets(stores.datasets)
    if as_json:
        console.print_json(found)
    else:
        rows = [
            [escape(each["name"]), each["latest"], str(each["versions"]), str(each["files"])]
            for each in found
        ]
        console.print_table(["dataset", "latest version", "versions", "files"], rows)


def import_folder(store: Store, folder: str, *, name: str | None = None) -> dict[str, Any]:
    """Copy a folder of the bucket into the inbox: what it will hold first, its `_READY` last.

    Raises:
        UsageError: it is no folder, or there is nothing in it.
        JobInvalid: no dataset can be called that.
    Cost: 1 request per file, 1 per 1,000, and 3.
    """
    from processor.cli.uploads import announce
    from processor.datasets import (
        LISTED,
        MAX_LISTED_BYTES,
        READY,
        check_dataset_name,
        folder_key,
        write_listed,
    )
    from processor.parallel import each
    from processor.store import ObjectInfo, read_bytes

    prefix = folder.strip("/") + "/"
    if prefix == "/":
        raise UsageError("an import needs a folder; the whole bucket is none")
    dataset = name or prefix.rstrip("/").rpartition("/")[2]
    target = folder_key(check_dataset_name(dataset))
    found = [item for page in store.list(prefix) for item in page.objects if item.key != prefix + READY]
    if not found:
        raise UsageError(f"nothing lies under {prefix}")

    def copy(item: ObjectInfo) -> None:
        store.copy(item.key, target + item.key[len(prefix) :])

    sizes = {item.key[len(prefix) :]: item.size_bytes for item in found}
    own = read_bytes(store, prefix + LISTED, limit_bytes=MAX_LISTED_BYTES) if LISTED in sizes else None
    announce(store, target, own or write_listed(sizes))
    for _ in each(copy, (item for item in found if item.key != prefix + LISTED)):
        pass
    store.put(target + READY, b"")
    return {"dataset": dataset, "key": target, "files": len(found)}


def list_datasets(store: Store) -> list[dict[str, Any]]:
    """Every archived dataset with its newest version.

    Args:
        store: of the datasets, which may have a bucket of their own.
    Cost: 1 request per 1,000 files, 1 per dataset.
    """
    from processor.layout import DATASETS, dataset_latest_key
    from processor.pointers import read_pointer

    files: dict[str, dict[str, int]] = {}
    for page in store.list(DATASETS):
        for item in page.objects:
            name, _, rest = item.key[len(DATASETS) :].partition("/")
            version, slash, _ = rest.partition("/")
            if slash:
                versions = files.setdefault(name, {})
                versions[version] = versions.get(version, 0) + 1
    found = []
    for name, versions in sorted(files.items()):
        pointer = read_pointer(store, dataset_latest_key(name))
        latest = str(pointer.facts["fingerprint"]) if pointer else ""
        # The record beside the files is none of them.
        found.append(
            {
                "name": name,
                "latest": latest,
                "versions": len(versions),
                "files": max(0, versions.get(latest, 1) - 1),
            }
        )
    return found
