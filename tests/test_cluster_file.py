"""cluster.yaml: legal for Ray's own launcher, and at the versions that are tested."""

from __future__ import annotations

import re
from typing import Any

import pytest
from ray.autoscaler._private.util import prepare_config, validate_config
from ruamel.yaml import YAML

from helpers import ROOT


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return YAML(typ="safe").load((ROOT / "cluster.yaml").read_text())


def test_ray_accepts_it(config):
    validate_config(prepare_config(config))


def test_a_key_that_ray_does_not_know_is_refused(config):
    with pytest.raises(Exception, match="'workers' was unexpected"):
        validate_config(prepare_config({**config, "workers": 3}))


def test_workers_are_spot_machines_that_come_and_go_and_the_head_trains_nothing_it_must_not_lose(config):
    types = config["available_node_types"]
    head, (worker,) = types[config["head_node_type"]], [t for name, t in types.items() if name != "head"]
    assert "InstanceMarketOptions" not in head["node_config"]
    assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert (worker["min_workers"], worker["max_workers"]) == (0, config["max_workers"])


def test_nodes_run_the_pinned_ray_and_install_the_working_copy_at_the_pinned_versions(config):
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    image = re.fullmatch(r"rayproject/ray:(\S+)-py(\d)(\d+)-gpu", config["docker"]["image"])
    assert image is not None
    assert image[1] == pins["ray"]
    assert f'requires-python = ">={image[2]}.{image[3]}"' in (ROOT / "pyproject.toml").read_text()
    assert any("-c constraints.txt -e" in command for command in config["setup_commands"])
    assert all((ROOT / local).exists() for local in config["file_mounts"].values())
    assert all(
        "RAY_preload_python_modules=torch" in config[f"{who}_start_ray_commands"][1] for who in ("head", "worker")
    )
