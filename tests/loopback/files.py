"""Everything with bytes: blobs, mounts and volumes, kept as files under the loopback's folder."""

import asyncio
import hashlib
import os
import py_compile
import shutil
import threading
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from importlib.util import cache_from_source
from itertools import pairwise
from pathlib import Path, PurePosixPath

from grpclib import GRPCError, Status
from modal_proto import api_pb2 as pb

from tests.loopback.containers import Container
from tests.loopback.named import Names
from tests.loopback.rpc import EMPTY, Empty, Message, new_id, not_found

BLOCK_BYTES = 8 << 20  # modal's volume block; shorter uploads stand for trailing zeros


def inside(root: Path, path: str) -> Path:
    """The file that a container's or volume's path means under `root`.

    Raises:
        GRPCError: INVALID_ARGUMENT where the path would leave the root.
    """
    target = Path(os.path.normpath(root / path.lstrip("/")))
    if not target.is_relative_to(root):
        raise GRPCError(Status.INVALID_ARGUMENT, f"{path!r} leaves its root")
    return target


class Blobs:
    """Payloads too big for a message, and file contents by their sha256. Served by `web.Store`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = ""  # set once the store listens
        root.mkdir(parents=True)

    def path(self, name: str) -> Path:
        return inside(self.root, name)

    def put(self, name: str, data: bytes) -> None:
        partial = self.root / f"{name}.{new_id('part')}"
        partial.write_bytes(data)
        partial.replace(self.path(name))

    async def blob_create(self, _request: pb.BlobCreateRequest) -> Message:
        blob_id = new_id("bl")
        urls = pb.UploadUrlList(items=[f"{self.url}/blob/{blob_id}"])
        return pb.BlobCreateResponse(blob_id=blob_id, blob_ids=[blob_id], upload_urls=urls)

    async def blob_get(self, request: pb.BlobGetRequest) -> Message:
        if not self.path(request.blob_id).is_file():
            raise not_found(f"blob {request.blob_id}")
        return pb.BlobGetResponse(download_url=f"{self.url}/blob/{request.blob_id}")


@dataclass
class Mounts:
    """Local files sent at deploy: contents by hash, and each mount's list of remote paths."""

    blobs: Blobs
    files: dict[str, list[pb.MountFile]] = field(default_factory=dict)
    names: Names = field(default_factory=lambda: Names("Mount", "mo"))
    compiling: threading.Lock = field(default_factory=threading.Lock)

    async def mount_batched_check_existence(self, request: pb.MountBatchedCheckExistenceRequest) -> Message:
        missing = [digest for digest in request.sha256_hex_hashes if not self.blobs.path(digest).exists()]
        return pb.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=missing)

    async def mount_put_file(self, request: pb.MountPutFileRequest) -> Message:
        if request.WhichOneof("data_oneof"):
            data = request.data
            if request.data_blob_id:
                data = self.blobs.path(request.data_blob_id).read_bytes()
            if hashlib.sha256(data).hexdigest() != request.sha256_hex:
                raise GRPCError(Status.INVALID_ARGUMENT, "the file is not what its hash says")
            self.blobs.put(request.sha256_hex, data)
        return pb.MountPutFileResponse(exists=self.blobs.path(request.sha256_hex).exists())

    async def mount_get_or_create(self, request: pb.MountGetOrCreateRequest) -> Message:
        # Modal's own client package is a mount of the global namespace; here it is installed.
        given = request.namespace == pb.DEPLOYMENT_NAMESPACE_GLOBAL
        creation = pb.OBJECT_CREATION_TYPE_CREATE_IF_MISSING if given else request.object_creation_type
        mount_id, _made = self.names.resolve(request.deployment_name, creation)
        self.files[mount_id] = list(request.files)
        metadata = pb.MountHandleMetadata(content_checksum_sha256_hex=mount_id)
        return pb.MountGetOrCreateResponse(mount_id=mount_id, handle_metadata=metadata)

    def lay_out(self, mount_ids: Iterable[str], root: Path) -> None:
        """Write the mounts' files under a container's root."""
        for mount_id in mount_ids:
            for file in self.files[mount_id]:
                target = inside(root, file.filename)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.blobs.path(file.sha256_hex), target)
                target.chmod(file.mode & 0o777 or 0o644)
                if target.suffix == ".py":
                    self._lay_out_compiled(file.sha256_hex, target)

    def _lay_out_compiled(self, digest: str, target: Path) -> None:
        """Beside a module what compiling it gives: once for all containers, which else would each do it."""
        compiled = self.blobs.path(digest).with_suffix(".pyc")
        with self.compiling:  # a file that is replaced at this very moment can't be linked to
            if not compiled.exists():
                py_compile.compile(
                    str(self.blobs.path(digest)),
                    cfile=str(compiled),
                    invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
                    quiet=2,  # a source that does not compile is its container's to tell of
                )
        if compiled.exists():
            cache = Path(cache_from_source(str(target)))
            cache.parent.mkdir(exist_ok=True)
            cache.unlink(missing_ok=True)
            cache.hardlink_to(compiled)


Index = dict[str, tuple[int, int]]


def _index(root: Path) -> Index:
    """Each file below with its mtime in ns and its size in bytes."""
    files = (path for path in root.rglob("*") if path.is_file() or path.is_symlink())
    return {str(path.relative_to(root)): (path.lstat().st_mtime_ns, path.lstat().st_size) for path in files}


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{new_id('part')}")
    shutil.copy2(source, partial, follow_symlinks=False)
    partial.replace(target)


@dataclass
class WorkingCopy:
    """A volume as one container sees it: its own copy, so that a missing commit or reload shows.

    As on Modal, a commit sends what changed here (the last writer of a file wins) and a reload, after
    a commit, brings what others committed.
    """

    shared: Path
    local: Path
    read_only: bool
    base: Index = field(default_factory=dict)

    def commit(self) -> None:
        if self.read_only:
            return
        now = _index(self.local)
        for name in now.keys() - {name for name in now if self.base.get(name) == now[name]}:
            _copy(self.local / name, self.shared / name)
        for name in self.base.keys() - now.keys():
            (self.shared / name).unlink(missing_ok=True)
        self.base = now

    def reload(self) -> None:
        self.commit()
        self.local.mkdir(parents=True, exist_ok=True)
        theirs, mine = _index(self.shared), _index(self.local)
        for name in theirs.keys() - {name for name in theirs if mine.get(name) == theirs[name]}:
            _copy(self.shared / name, self.local / name)
        for name in mine.keys() - theirs.keys():
            (self.local / name).unlink()
        self.base = _index(self.local)


class Volumes:
    """`modal.Volume` version 2, over the client's batch upload, listing, reading and removal."""

    def __init__(self, root: Path, blobs: Blobs) -> None:
        self.root, self.blobs = root, blobs
        self.names = Names("Volume", "vo")
        self.versions: dict[str, int] = {}
        self.locks: dict[str, asyncio.Lock] = {}

    def folder(self, volume_id: str) -> Path:
        if volume_id not in self.versions:
            raise not_found(f"volume {volume_id}")
        return self.root / volume_id

    def metadata(self, volume_id: str) -> pb.VolumeMetadata:
        return pb.VolumeMetadata(
            name=self.names.name_of(volume_id),
            version=self.versions[volume_id],  # type: ignore[arg-type]  # enums are ints on the wire
        )

    async def working_copy(self, mount: pb.VolumeMount, root: Path) -> WorkingCopy:
        shared = inside(self.folder(mount.volume_id), mount.sub_path)
        shared.mkdir(parents=True, exist_ok=True)
        copy = WorkingCopy(shared, inside(root, mount.mount_path), mount.read_only)
        async with self.locks[mount.volume_id]:
            await asyncio.to_thread(copy.reload)
        return copy

    async def volume_get_or_create(self, request: pb.VolumeGetOrCreateRequest) -> Message:
        volume_id, made = self.names.resolve(request.deployment_name, request.object_creation_type)
        if made:
            # Unspecified means version 1 on Modal; only version 2 is spoken here.
            self.versions[volume_id] = request.version or pb.VOLUME_FS_VERSION_V1
            self.locks[volume_id] = asyncio.Lock()
            (self.root / volume_id).mkdir(parents=True)
        return pb.VolumeGetOrCreateResponse(volume_id=volume_id, metadata=self.metadata(volume_id))

    async def volume_get_by_id(self, request: pb.VolumeGetByIdRequest) -> Message:
        self.folder(request.volume_id)
        return pb.VolumeGetByIdResponse(
            volume_id=request.volume_id, metadata=self.metadata(request.volume_id)
        )

    async def volume_list(self, _request: pb.VolumeListRequest) -> Message:
        items = [
            pb.VolumeListItem(label=name, volume_id=known, metadata=self.metadata(known))
            for name, known in self.names.ids.items()
        ]
        return pb.VolumeListResponse(items=items)

    async def volume_commit(self, request: pb.VolumeCommitRequest, caller: Container | None) -> Message:
        copy = _mounted(caller, request.volume_id)
        async with self.locks[request.volume_id]:
            await asyncio.to_thread(copy.commit)
        return pb.VolumeCommitResponse(skip_reload=False)

    async def volume_reload(self, request: pb.VolumeReloadRequest, caller: Container | None) -> Empty:
        copy = _mounted(caller, request.volume_id)
        if caller and (held := caller.open_files(copy.local)):
            raise GRPCError(
                Status.FAILED_PRECONDITION, f"there are open files preventing the operation: {held[0]}"
            )
        async with self.locks[request.volume_id]:
            await asyncio.to_thread(copy.reload)
        return EMPTY

    async def volume_put_files2(self, request: pb.VolumePutFiles2Request) -> Message:
        root = self.folder(request.volume_id)
        missing = [
            pb.VolumePutFiles2Response.MissingBlock(
                file_index=i, block_index=k, put_url=f"{self.blobs.url}/blob/{block.contents_sha256.hex()}"
            )
            for i, file in enumerate(request.files)
            for k, block in enumerate(file.blocks)
            if not self.blobs.path(block.contents_sha256.hex()).exists()
        ]
        if missing:
            return pb.VolumePutFiles2Response(missing_blocks=missing)
        for file in request.files:
            target = inside(root, file.path)
            if target.exists() and request.disallow_overwrite_existing_files:
                raise GRPCError(Status.ALREADY_EXISTS, f"{file.path} already exists")
            async with self.locks[request.volume_id]:
                await asyncio.to_thread(self._assemble, file, target)
        return pb.VolumePutFiles2Response()

    def _assemble(self, file: pb.VolumePutFiles2Request.File, target: Path) -> None:
        partial = self.blobs.root / new_id("part")
        with partial.open("wb") as out:
            for index, block in enumerate(file.blocks):
                out.seek(index * BLOCK_BYTES)
                out.write(self.blobs.path(block.contents_sha256.hex()).read_bytes())
            out.truncate(file.size)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.replace(target)

    async def volume_list_files2(self, request: pb.VolumeListFiles2Request) -> AsyncIterator[Message]:
        root = self.folder(request.volume_id)
        top = inside(root, request.path)
        if not top.exists():
            raise not_found(f"{request.path!r} is not in the volume")
        found = [top] if top.is_file() else sorted(top.rglob("*") if request.recursive else top.iterdir())
        yield pb.VolumeListFiles2Response(entries=[_entry(path, root) for path in found])

    async def volume_get_file2(self, request: pb.VolumeGetFile2Request) -> Message:
        path = inside(self.folder(request.volume_id), request.path)
        if not path.is_file():
            raise not_found(f"{request.path!r} is not in the volume")
        size = path.stat().st_size
        end = min(size, request.start + request.len) if request.len else size
        url = (
            f"{self.blobs.url}/volume/{request.volume_id}/{path.relative_to(self.folder(request.volume_id))}"
        )
        edges = [
            request.start,
            *range((request.start // BLOCK_BYTES + 1) * BLOCK_BYTES, end, BLOCK_BYTES),
            end,
        ]
        urls = [f"{url}?start={a}&end={b}" for a, b in pairwise(edges) if b > a]
        return pb.VolumeGetFile2Response(
            get_urls=urls, size=size, start=request.start, len=max(0, end - request.start)
        )

    async def volume_remove_file2(self, request: pb.VolumeRemoveFile2Request) -> Empty:
        path = inside(self.folder(request.volume_id), request.path)
        if not path.exists():
            raise not_found(f"{request.path!r} is not in the volume")
        async with self.locks[request.volume_id]:
            if path.is_dir() and not request.recursive:
                raise GRPCError(Status.INVALID_ARGUMENT, f"{request.path!r} is a directory")
            await asyncio.to_thread(shutil.rmtree if path.is_dir() else Path.unlink, path)
        return EMPTY


def _mounted(caller: Container | None, volume_id: str) -> WorkingCopy:
    if caller is None or volume_id not in caller.volumes:
        raise not_found(f"volume {volume_id} is not mounted here")
    return caller.volumes[volume_id]


def _entry(path: Path, root: Path) -> pb.FileEntry:
    kind = pb.FileEntry.DIRECTORY if path.is_dir() else pb.FileEntry.FILE
    stat = path.stat()
    name = str(PurePosixPath(path.relative_to(root)))
    return pb.FileEntry(path=name, type=kind, mtime=int(stat.st_mtime), size=stat.st_size)
