"""The table `[modal]`: what would be deployed otherwise than it reads is refused, with the setting's name."""

from __future__ import annotations

from typing import Any

import pytest

from infra.gpus import usd_per_s
from infra.plan import plan_of
from infra.secrets import needed, values_of
from infra.settings import deployable
from processor.config import load_without_file
from processor.errors import ConfigError


def deploy_with(**modal: Any) -> Any:
    return deployable(load_without_file(bucket="s3://a-bucket", modal=modal))


@pytest.mark.parametrize(
    ("options", "where", "says"),
    [
        ({"render_containers": 0}, "render_containers", "dropbatch pause"),
        ({"train_containers": 0}, "train_containers", "where: local"),
        ({"api_containers": 0}, "api_containers", "api = false"),
        ({"api_containers": -1}, "api_containers", "api = false"),
        ({"api_containers": 2, "api_min_containers": 3}, "api_min_containers", "Raise api_containers"),
        ({"api_min_containers": 2}, "api_min_containers", "at most 1"),
    ],
)
def test_counts_that_modal_takes_otherwise_are_refused(
    options: dict[str, Any], where: str, says: str
) -> None:
    """0 is no limit there, and more warm containers than there may be an error without a name."""
    with pytest.raises(ConfigError) as caught:
        deploy_with(**options)
    assert caught.value.where == f"[modal] {where}"
    assert says in str(caught.value)


@pytest.mark.parametrize("name", ["models_bucket", "datasets_bucket"])
def test_a_bucket_that_is_a_folder_here_is_refused(name: str) -> None:
    """Any of the three: each container would have an empty one of its own, gone with it."""
    with pytest.raises(ConfigError, match="can't reach a folder") as caught:
        deployable(load_without_file(bucket="s3://a-bucket", **{name: "/a/folder"}))
    assert caught.value.where == name


def test_the_key_of_mounted_models_is_asked_for() -> None:
    """In a secret of its own where one is named; it is made from the pair of that bucket."""
    named = {"mount_bucket": True, "models_mount_secret": "b2-models"}
    given = load_without_file(bucket="s3://a-bucket", models_bucket="s3://models", modal=named)
    (secret,) = [each for each in needed(deployable(given)) if each.name == "b2-models"]
    environ = {"DROPBATCH_KEY_ID": "k", "DROPBATCH_KEY": "s"}
    own = {"DROPBATCH_MODELS_KEY_ID": "mk", "DROPBATCH_MODELS_KEY": "ms"}
    assert values_of(secret, environ | own) == {"AWS_ACCESS_KEY_ID": "mk", "AWS_SECRET_ACCESS_KEY": "ms"}
    assert values_of(secret, environ) == {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
    for off in ({"models_mount_secret": "b2-models"}, {"mount_bucket": True}):
        names = [each.name for each in needed(deploy_with(**off))]
        assert len(names) == len(set(names))
        assert "b2-models" not in names


def test_the_key_of_another_bucket_is_asked_for_where_the_environment_has_it() -> None:
    """A secret made before would leave containers with the main key, which that bucket refuses."""
    deployed = deployable(load_without_file(bucket="s3://a-bucket", models_bucket="s3://models"))
    own = {"DROPBATCH_MODELS_KEY_ID": "mk", "DROPBATCH_MODELS_KEY": "ms"}
    others = {"DROPBATCH_DATASETS_KEY_ID": "dk", "DROPBATCH_DATASETS_KEY": "ds"}
    main = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    assert needed(deployed, {})[0].keys == main
    (secret, *_) = needed(deployed, own | others)
    assert secret.keys == (*main, *own), "not of a bucket that there is not"
    environ = {"DROPBATCH_KEY_ID": "k", "DROPBATCH_KEY": "s"} | own
    assert values_of(secret, environ) == dict(zip(main, ("k", "s"), strict=True)) | own


def test_a_warm_container_costs_its_cores_and_memory_as_well() -> None:
    """And without a GPU only those."""
    idle = plan_of(deploy_with()).idle_usd_a_month
    warm = plan_of(deploy_with(api_min_containers=1)).idle_usd_a_month - idle
    cpu = 4 * 0.0473 + 16 * 0.0080
    assert warm == pytest.approx(730 * (1.95 + cpu))
    builtin = plan_of(deploy_with(api_min_containers=1, engine="builtin")).idle_usd_a_month - idle
    assert builtin == pytest.approx(730 * cpu)


def test_a_gpu_of_unknown_price_is_charged_as_the_dearest() -> None:
    """At nothing no cap would hold."""
    assert usd_per_s("RTX9090") == usd_per_s("B200") > 0
    assert usd_per_s("RTX9090:2") == 2 * usd_per_s("B200")
    assert usd_per_s(None) == 0
