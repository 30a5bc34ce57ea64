"""What a deploy registers on the loopback, and the deploys that must fail."""
# the client under test

import subprocess
import sys
from pathlib import Path

import modal
import pytest

from tests.infra.conftest import APPS
from tests.loopback import Loopback
from tests.loopback.fixture import loopback

__all__ = ["loopback"]


def test_a_function_is_registered_field_by_field(abilities: Loopback) -> None:
    tick = abilities.registered["tick"]
    assert tick.schedule == ("*/5 1-7 * * *", "Europe/Berlin")
    assert tick.spec.timeout_secs == 300
    assert tick.spec.retry_policy.retries == 0
    assert tick.gpus == []
    assert abilities.secrets_of("tick") == {"bucket": {"BUCKET_KEY"}}
    assert abilities.files_of("tick") == {"/root/abilities.py", "/opt/abilities.txt"}
    assert "ENV FROM_IMAGE=yes" in abilities.image_of("tick")
    assert abilities.registered["third_time_lucky"].spec.retry_policy.retries == 2


def test_a_class_is_registered_field_by_field(abilities: Loopback) -> None:
    renderer = abilities.registered["Renderer.*"]
    assert renderer.gpus == ["L40S", "A100-80GB:2"]
    assert renderer.data is not None
    assert (renderer.data.timeout_secs, renderer.data.startup_timeout_secs) == (600, 120)
    settings = renderer.spec.autoscaler_settings
    assert (settings.min_containers, settings.max_containers) == (0, 3)
    assert (settings.buffer_containers, settings.scaledown_window) == (1, 60)
    assert renderer.spec.checkpointing_enabled
    assert renderer.spec.max_concurrent_inputs == 2
    assert set(renderer.spec.method_definitions) == {"render", "sick"}
    models = abilities.volumes_of("Renderer.*")["/models"]
    assert (models.name, models.version) == ("models", 2)


def test_a_web_function_is_registered_with_its_guard(abilities: Loopback) -> None:
    assert abilities.registered["site"].spec.webhook_config.requires_proxy_auth
    assert not abilities.registered["served"].spec.webhook_config.requires_proxy_auth
    assert modal.Function.from_name("abilities", "site").get_web_url() == abilities.url_of("site")


def test_a_deploy_without_its_secret_fails(loopback: Loopback) -> None:
    with pytest.raises(AssertionError, match="'bucket' not found"):
        loopback.deploy(str(APPS / "abilities.py"))
    assert loopback.registered == {}


def test_a_secret_without_a_required_key_is_refused(loopback: Loopback) -> None:
    loopback.set_secret("bucket", {"OTHER": "x"})
    modal.Secret.from_name("bucket").hydrate()
    with pytest.raises(modal.exception.NotFoundError, match="BUCKET_KEY"):
        modal.Secret.from_name("bucket", required_keys=["BUCKET_KEY"]).hydrate()


def test_a_file_missing_from_the_mounts_fails_in_the_container(loopback: Loopback) -> None:
    loopback.deploy(str(APPS / "unmounted.py"))
    with pytest.raises(ModuleNotFoundError, match="neighbour"):
        modal.Function.from_name("unmounted", "greet").remote()
    assert [c.reason for c in loopback.containers()] == ["failed to start"] * 3


def test_containers_that_start_too_slowly_fail_the_call(loopback: Loopback) -> None:
    loopback.deploy(str(APPS / "slow_start.py"))
    with pytest.raises(modal.exception.RemoteError, match="did not start in 1 s"):
        modal.Function.from_name("slow-start", "work").remote()
    assert {c.reason for c in loopback.containers()} == {"startup timeout"}


def test_a_deprecated_feature_is_an_error(loopback: Loopback) -> None:
    with pytest.raises(AssertionError, match="DeprecationError"):
        loopback.deploy(str(APPS / "outdated.py"), command="run")


def test_a_redeploy_keeps_the_id_and_replaces_the_containers(abilities: Loopback) -> None:
    echo = modal.Function.from_name("abilities", "echo")
    echo.remote(b"")
    before, old = abilities.registered["echo"].function_id, abilities.containers("echo")[-1]
    abilities.deploy(str(APPS / "abilities.py"))
    assert abilities.registered["echo"].function_id == before
    assert old.wait_exited().reason == "redeployed"
    assert echo.remote(b"again") == b"again"


def test_modal_run_shows_output_and_stops_the_app(loopback: Loopback) -> None:
    loopback.set_secret("bucket", {"BUCKET_KEY": "k"})
    printed = loopback.deploy(str(APPS / "abilities.py::entry"), command="run")
    assert "six squared is 36" in printed
    assert loopback.registered == {}
    assert all(container.wait_exited() for container in loopback.containers())


def test_the_module_runs_a_command_against_a_loopback(tmp_path: Path) -> None:
    program = "import modal; d = modal.Dict.from_name('d', create_if_missing=True); d['k'] = 1; print(d['k'])"
    command = [sys.executable, "-m", "tests.loopback", "--root", str(tmp_path / "modal"), "--"]
    done = subprocess.run(
        [*command, sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=55
    )
    assert done.stdout == "1\n"
