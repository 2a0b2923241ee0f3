"""What the tests share: a cache of their own, one thread, and texts small enough to train on in seconds."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import settings

from helpers import ROOT
from helpers.results import make_results
from helpers.text import words
from tinyscale.orchestration.session import Cluster, ray_session
from tinyscale.reporting.write import analyse
from tinyscale.results.store import Results
from tinyscale.spec.data_config import DataConfig

if TYPE_CHECKING:
    from helpers.servers import S3Server

# No test depends on how fast an example runs; in continuous integration the examples are the same each time.
settings.register_profile("tinyscale", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("tinyscale")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tokens and measured speeds of the tests lie apart from the user's; subprocesses inherit all of it."""
    folder = tmp_path_factory.mktemp("cache")
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYSCALE_CACHE", str(folder))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
        patch.delenv("RAY_ADDRESS", raising=False)
        # A process keeps the first mode it saw: the Rays that tests start in it, one after another, must share one.
        patch.setenv("RAY_AUTH_MODE", "disabled")
        yield folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with many tests come early, but those that share a Ray come last: each process starts one, and late."""
    shares = {item: isinstance(item, pytest.Function) and "cluster" in item.fixturenames for item in items}
    sharing, sizes = {item.path for item in items if shares[item]}, Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path in sharing, -sizes[item.path], str(item.path), shares[item]))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A Ray with all of this machine, shared by the tests of a process that leave it alive.

    A file that uses it starts no other Ray in the process of the tests.
    """
    with ray_session(None) as running:
        yield running


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    """A server of S3 with a bucket."""
    from helpers.servers import S3Server  # only here: it takes a second to import

    running = S3Server()
    running.create_bucket()
    yield running
    running.stop()


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """The results folder of the test."""
    return Results(str(tmp_path / "results"))


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A results folder of several sweeps, fitted; to be read only."""
    folder = str(tmp_path_factory.mktemp("fitted") / "results")
    make_results(folder)
    analyse(folder, folder, draws=100)
    return folder


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """Twenty documents of 2 KB, by bytes; 5 KB are held out."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(20):
        (folder / f"{number}.txt").write_text(words(400, seed=number))
    return DataConfig.model_validate({"corpus": str(folder), "tokenizer": {"kind": "byte"}, "val_bytes": 5000})


@pytest.fixture(scope="session")
def long_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 40 documents, by bytes enough for the 100,000 validation tokens that a plan insists on."""
    folder = tmp_path_factory.mktemp("long")
    for number in range(40):
        (folder / f"{number}.txt").write_text(words(4000, seed=number))
    return folder
