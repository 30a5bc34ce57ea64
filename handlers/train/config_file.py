"""A config as the file that the trainer reads."""

from __future__ import annotations

import io

from ruamel.yaml import YAML
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import SafeRepresenter

from handlers.train.config import Process


class _Quoting(SafeRepresenter):
    """Quotes every text: the trainer reads YAML 1.1, where `on` is a truth value and `16:9` a number."""

    def represent_str(self, data: str) -> ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style='"')


_Quoting.add_representer(str, _Quoting.represent_str)


def to_yaml(name: str, process: Process) -> bytes:
    """A config file as the trainer reads it, of one process."""
    document = {
        "job": "extension",
        "config": {"name": name, "process": [process]},
        "meta": {"name": "[name]", "version": "1.0"},
    }
    stream = io.BytesIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Quoting
    yaml.dump(document, stream)
    return stream.getvalue()
