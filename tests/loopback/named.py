"""Dicts, secrets, images and environments: the objects that need no files."""

import re
import shlex
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from grpclib import GRPCError, Status
from modal_proto import api_pb2

from tests.loopback.containers import Container
from tests.loopback.rpc import EMPTY, Empty, Message, new_id, not_found

IMAGE_BUILDER_VERSION = "2025.06"
LOOKUP_ONLY = api_pb2.OBJECT_CREATION_TYPE_UNSPECIFIED
ANONYMOUS = (api_pb2.OBJECT_CREATION_TYPE_ANONYMOUS_OWNED_BY_APP, api_pb2.OBJECT_CREATION_TYPE_EPHEMERAL)


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
            if creation == api_pb2.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS:
                raise GRPCError(Status.ALREADY_EXISTS, f"{self.kind} '{name}' already exists")
            return self.ids[name], creation == api_pb2.OBJECT_CREATION_TYPE_CREATE_OVERWRITE_IF_EXISTS
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

    async def dict_get_or_create(
        self, request: api_pb2.DictGetOrCreateRequest, _: Container | None
    ) -> Message:
        dict_id, _made = self.names.resolve(request.deployment_name, request.object_creation_type)
        self.entries.setdefault(dict_id, {})
        return api_pb2.DictGetOrCreateResponse(
            dict_id=dict_id, metadata=api_pb2.DictMetadata(name=request.deployment_name)
        )

    async def dict_get_by_id(self, request: api_pb2.DictGetByIdRequest, _: Container | None) -> Message:
        metadata = api_pb2.DictMetadata(name=self.names.name_of(request.dict_id))
        return api_pb2.DictGetByIdResponse(dict_id=request.dict_id, metadata=metadata)

    async def dict_update(self, request: api_pb2.DictUpdateRequest, _: Container | None) -> Message:
        entries = self.entries[request.dict_id]
        if request.if_not_exists and any(update.key in entries for update in request.updates):
            return api_pb2.DictUpdateResponse(created=False)
        entries.update({update.key: update.value for update in request.updates})
        return api_pb2.DictUpdateResponse(created=True)

    async def dict_get(self, request: api_pb2.DictGetRequest, _: Container | None) -> Message:
        value = self.entries[request.dict_id].get(request.key)
        return api_pb2.DictGetResponse(found=value is not None, value=value)

    async def dict_pop(self, request: api_pb2.DictPopRequest, _: Container | None) -> Message:
        value = self.entries[request.dict_id].pop(request.key, None)
        return api_pb2.DictPopResponse(found=value is not None, value=value)

    async def dict_contains(self, request: api_pb2.DictContainsRequest, _: Container | None) -> Message:
        return api_pb2.DictContainsResponse(found=request.key in self.entries[request.dict_id])

    async def dict_len(self, request: api_pb2.DictLenRequest, _: Container | None) -> Message:
        return api_pb2.DictLenResponse(len=min(len(self.entries[request.dict_id]), 100_000))

    async def dict_clear(self, request: api_pb2.DictClearRequest, _: Container | None) -> Empty:
        self.entries[request.dict_id].clear()
        return EMPTY

    async def dict_delete(self, request: api_pb2.DictDeleteRequest, _: Container | None) -> Empty:
        self.entries.pop(request.dict_id, None)
        self.names.ids.pop(self.names.name_of(request.dict_id), None)
        return EMPTY

    async def dict_contents(
        self, request: api_pb2.DictContentsRequest, _: Container | None
    ) -> AsyncIterator[Message]:
        for key, value in list(self.entries[request.dict_id].items()):
            yield api_pb2.DictEntry(key=key if request.keys else b"", value=value if request.values else b"")


class Secrets:
    """`modal.Secret`: a missing secret or required key is refused at look-up, as on Modal."""

    def __init__(self) -> None:
        self.names = Names("Secret", "st")
        self.env: dict[str, dict[str, str]] = {}
        self.required: dict[str, set[str]] = {}

    def set(self, name: str, env: dict[str, str]) -> None:
        secret_id, _made = self.names.resolve(name, api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING)
        self.env[secret_id] = dict(env)

    async def secret_get_or_create(
        self, request: api_pb2.SecretGetOrCreateRequest, _: Container | None
    ) -> Message:
        name = request.deployment_name
        secret_id, made = self.names.resolve(name, request.object_creation_type)
        if made:
            self.env[secret_id] = dict(request.env_dict)
        if missing := sorted(set(request.required_keys) - self.env[secret_id].keys()):
            raise not_found(f"Secret '{name}' is missing required keys: {', '.join(missing)}")
        self.required.setdefault(secret_id, set()).update(request.required_keys)
        return api_pb2.SecretGetOrCreateResponse(secret_id=secret_id, metadata=self._metadata(secret_id))

    async def secret_list(self, _request: api_pb2.SecretListRequest, _: Container | None) -> Message:
        items = [
            api_pb2.SecretListItem(
                label=name, secret_id=known, created_at=time.time(), metadata=self._metadata(known)
            )
            for name, known in self.names.ids.items()
        ]
        return api_pb2.SecretListResponse(items=items)

    def _metadata(self, secret_id: str) -> api_pb2.SecretMetadata:
        return api_pb2.SecretMetadata(name=self.names.name_of(secret_id), keys=sorted(self.env[secret_id]))


_ENV_LINE = re.compile(r"ENV\s+(.+)", re.IGNORECASE)


@dataclass
class Images:
    """Recorded, never built: an image is the chain of its layers' definitions."""

    definitions: dict[str, api_pb2.Image] = field(default_factory=dict)
    build_functions: dict[str, str] = field(default_factory=dict)

    def layers(self, image_id: str) -> list[api_pb2.Image]:
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

    async def image_get_or_create(
        self, request: api_pb2.ImageGetOrCreateRequest, _: Container | None
    ) -> Message:
        same = (known for known, layer in self.definitions.items() if layer == request.image)
        image_id = next(same, None) or new_id("im")
        self.definitions[image_id] = request.image
        return api_pb2.ImageGetOrCreateResponse(
            image_id=image_id,
            result=api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_SUCCESS),
            metadata=api_pb2.ImageMetadata(image_builder_version=IMAGE_BUILDER_VERSION),
        )


class Environments:
    """One environment, `main`, and the greetings that every client sends."""

    async def client_hello(self, _request: Empty, _: Container | None) -> Message:
        return api_pb2.ClientHelloResponse(image_builder_version=IMAGE_BUILDER_VERSION)

    async def environment_get_or_create(
        self, request: api_pb2.EnvironmentGetOrCreateRequest, _: Container | None
    ) -> Message:
        settings = api_pb2.EnvironmentSettings(image_builder_version=IMAGE_BUILDER_VERSION)
        metadata = api_pb2.EnvironmentMetadata(name=request.deployment_name or "main", settings=settings)
        return api_pb2.EnvironmentGetOrCreateResponse(environment_id="en-main", metadata=metadata)
