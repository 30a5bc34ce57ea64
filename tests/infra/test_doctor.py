"""`dropbatch doctor --modal` tells what it finds, whatever that is."""

from __future__ import annotations

import pytest

from infra import doctor
from infra.settings import Deployment
from processor.cli.findings import Finding
from processor.config import load_without_file


def test_what_a_look_raises_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect in a container comes back as its own exception, a door without a name as urllib3's."""

    def defect(_deployed: Deployment) -> Finding:
        raise KeyError("a defect in the container")

    def fine(_deployed: Deployment) -> Finding:
        return Finding("ok", "a look", "fine")

    for name in ("_token", "_plan", "_secrets", "_app", "_volume"):
        monkeypatch.setattr(doctor, name, fine)
    for name in ("_tick", "_doors"):
        monkeypatch.setattr(doctor, name, defect)
    found = list(doctor.examine(load_without_file(bucket="s3://a-bucket")))
    assert [finding.state for finding in found].count("fail") == 2
    assert "KeyError: 'a defect in the container'" in [finding.what for finding in found]
