"""The rooms stay apart at run time: `import modal` in a function or a chain of imports shows up here.

Ruff (TID251) and import-linter hold the same line in the source.
"""

import json
import subprocess
import sys

import pytest

_IMPORT_ALL = """
import importlib, json, pkgutil, sys

room = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(room.__path__, room.__name__ + "."):
    if not module.name.endswith(".__main__"):
        importlib.import_module(module.name)
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


@pytest.mark.parametrize(
    ("room", "banned"),
    [
        ("processor", {"handlers", "infra", "modal", "numpy", "torch"}),
        ("handlers", {"infra", "modal", "numpy", "torch"}),
        ("workflows", {"processor", "handlers", "infra", "modal"}),
    ],
)
def test_importing_every_module_of_a_room_leaves_the_others_alone(room: str, banned: set[str]) -> None:
    """All its modules are imported in a fresh interpreter, which then tells what came along."""
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT_ALL, room], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    imported = set(json.loads(done.stdout))
    assert room in imported
    assert not imported & banned
