"""Dicts, secrets, images and environments: the objects that need no files."""

import re
import shlex
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from grpclib import GRPCError, Status
from modal_proto import api_pb2 as pb

from tests.loopback.rpc import EMPTY, Empty, Message, new_id, not_found

IMAGE_BUILDER_VERSION = "2025.06"
LOOKUP_ONLY = pb.OBJECT_CREATION_TYPE_UNSPECIFIED
ANONYMOUS = (pb.OBJECT_CREATION_TYPE_ANONYMOUS_OWNED_BY_APP, pb.OBJECT_CREATION_TYPE_EPHEMERAL)


class Names:
    """Which id a deployed name stands for, with Modal's rules for creating it."""

    def __init__(self, kind: str, prefix: str) -> None:
        self.kind, self.prefix = kind, prefix
        self.ids: dict[str, str] = {}

    def resolve(self, name: str, creation: int) -> tuple[str, bool]:
        """The object's id and whether this call made it.

        Raises:
            GRPCError: NOT_FOUND on a plain look-up, ALREADY_EXISTS where the caller forbids one.
        """
        if creation in ANONYMOUS:
            return new_id(self.prefix), True
        if name in self.ids:
            if creation == pb.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS:
                raise GRPCError(Status.ALREADY_EXISTS, f"{self.kind} '{name}' already exists")
            return self.ids[name], creation == pb.OBJECT_CREATION_TYPE_CREATE_OVERWRITE_IF_EXISTS
        if creation == LOOKUP_ONLY:
            raise not_found(f"{self.kind} '{name}' not found")
        self.ids[name] = new_id(self.prefix)
        return self.ids[name], True

    def name_of(self, object_id: str) -> str:
        return next((name for name, known in self.ids.items() if known == object_id), "")


class Dicts:
    """`modal.Dict`: keys and values are the client's bytes; one loop makes each update atomic."""

    def __init__(self) -> None:
        self.names = Names("Dict", "di")
        self.entries: dict[str, dict[bytes, bytes]] = {}

    async def dict_get_or_create(self, request: pb.DictGetOrCreateRequest) -> Message:
        dict_id, _made = self.names.resolve(request.deployment_name, request.object_creation_type)
        self.entries.setdefault(dict_id, {})
        return pb.DictGetOrCreateResponse(
            dict_id=dict_id, metadata=pb.DictMetadata(name=request.deployment_name)
        )

    async def dict_get_by_id(self, request: pb.DictGetByIdRequest) -> Message:
        metadata = pb.DictMetadata(name=self.names.name_of(request.dict_id))
        return pb.DictGetByIdResponse(dict_id=request.dict_id, metadata=metadata)

    async def dict_update(self, request: pb.DictUpdateRequest) -> Message:
        entries = self.entries[request.dict_id]
        if request.if_not_exists and any(update.key in entries for update in request.updates):
            return pb.DictUpdateResponse(created=False)
        entries.update({update.key: update.value for update in request.updates})
        return pb.DictUpdateResponse(created=True)

    async def dict_get(self, request: pb.DictGetRequest) -> Message:
        value = self.entries[request.dict_id].get(request.key)
        return pb.DictGetResponse(found=value is not None, value=value)

    async def dict_pop(self, request: pb.DictPopRequest) -> Message:
        value = self.entries[request.dict_id].pop(request.key, None)
        return pb.DictPopResponse(found=value is not None, value=value)

    async def dict_contains(self, request: pb.DictContainsRequest) -> Message:
        return pb.DictContainsResponse(found=request.key in self.entries[request.dict_id])

    async def dict_len(self, request: pb.DictLenRequest) -> Message:
        return pb.DictLenResponse(len=min(len(self.entries[request.dict_id]), 100_000))

    async def dict_clear(self, request: pb.DictClearRequest) -> Empty:
        self.entries[request.dict_id].clear()
        return EMPTY

    async def dict_delete(self, request: pb.DictDeleteRequest) -> Empty:
        self.entries.pop(request.dict_id, None)
        self.names.ids.pop(self.names.name_of(request.dict_id), None)
        return EMPTY

    async def dict_contents(self, request: pb.DictContentsRequest) -> AsyncIterator[Message]:
        for key, value in list(self.entries[request.dict_id].items()):
            yield pb.DictEntry(key=key if request.keys else b"", value=value if request.values else b"")


class Secrets:
    """`modal.Secret`: a missing secret or required key is refused at look-up, as on Modal."""

    def __init__(self) -> None:
        self.names = Names("Secret", "st")
        self.env: dict[str, dict[str, str]] = {}
        self.in_snapshots: dict[str, dict[str, str]] = {}
        """What a secret held when snapshots were taken, where it is another by now."""
        self.required: dict[str, set[str]] = {}

    def set(self, name: str, env: dict[str, str], in_snapshots: dict[str, str]) -> None:
        secret_id, _made = self.names.resolve(name, pb.OBJECT_CREATION_TYPE_CREATE_IF_MISSING)
        self.env[secret_id] = dict(env)
        self.in_snapshots[secret_id] = dict(in_snapshots)

    async def secret_get_or_create(self, request: pb.SecretGetOrCreateRequest) -> Message:
        name = request.deployment_name
        secret_id, made = self.names.resolve(name, request.object_creation_type)
        if made:
            self.env[secret_id] = dict(request.env_dict)
        if missing := sorted(set(request.required_keys) - self.env[secret_id].keys()):
            raise not_found(f"Secret '{name}' is missing required keys: {', '.join(missing)}")
        self.required.setdefault(secret_id, set()).update(request.required_keys)
        return pb.SecretGetOrCreateResponse(secret_id=secret_id, metadata=self._metadata(secret_id))

    async def secret_list(self, _request: pb.SecretListRequest) -> Message:
        items = [
            pb.SecretListItem(
                label=name, secret_id=known, created_at=time.time(), metadata=self._metadata(known)
            )
            for name, known in self.names.ids.items()
        ]
        return pb.SecretListResponse(items=items)

    def _metadata(self, secret_id: str) -> pb.SecretMetadata:
        return pb.SecretMetadata(name=self.names.name_of(secret_id), keys=sorted(self.env[secret_id]))


_ENV_LINE = re.compile(r"ENV\s+(.+)", re.IGNORECASE)


@dataclass
class Images:
    """Recorded, never built: an image is the chain of its layers' definitions."""

    definitions: dict[str, pb.Image] = field(default_factory=dict)
    build_functions: dict[str, str] = field(default_factory=dict)

    def layers(self, image_id: str) -> list[pb.Image]:
        """The layers below and including this one, bottom first."""
        image = self.definitions[image_id]
        below = [layer for base in image.base_images for layer in self.layers(base.image_id)]
        return [*below, image]

    def commands(self, image_id: str) -> list[str]:
        return [line for layer in self.layers(image_id) for line in layer.dockerfile_commands]

    def env(self, image_id: str) -> dict[str, str]:
        """What the layers' ENV lines set, which a built image would carry."""
        env: dict[str, str] = {}
        for line in self.commands(image_id):
            if match := _ENV_LINE.fullmatch(line.strip()):
                pairs = (pair.partition("=") for pair in shlex.split(match[1]))
                env.update({key: value for key, _, value in pairs})
        return env

    def copied(self, image_id: str) -> list[str]:
        """The mounts that `add_local_*(copy=True)` bakes into the image, whole, at its root."""
        layers = self.layers(image_id)
        return [layer.context_mount_id for layer in layers if "COPY . /" in layer.dockerfile_commands]

    async def image_get_or_create(self, request: pb.ImageGetOrCreateRequest) -> Message:
        same = (known for known, layer in self.definitions.items() if layer == request.image)
        image_id = next(same, None) or new_id("im")
        self.definitions[image_id] = request.image
        return pb.ImageGetOrCreateResponse(
            image_id=image_id,
            result=pb.GenericResult(status=pb.GenericResult.GENERIC_STATUS_SUCCESS),
            metadata=pb.ImageMetadata(image_builder_version=IMAGE_BUILDER_VERSION),
        )


class Environments:
    """One environment, `main`, and the greetings that every client sends."""

    async def client_hello(self, _request: Empty) -> Message:
        return pb.ClientHelloResponse(image_builder_version=IMAGE_BUILDER_VERSION)

    async def environment_get_or_create(self, request: pb.EnvironmentGetOrCreateRequest) -> Message:
        settings = pb.EnvironmentSettings(image_builder_version=IMAGE_BUILDER_VERSION)
        metadata = pb.EnvironmentMetadata(name=request.deployment_name or "main", settings=settings)
        return pb.EnvironmentGetOrCreateResponse(environment_id="en-main", metadata=metadata)
