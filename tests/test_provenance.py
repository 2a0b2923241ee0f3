"""What a launch records of where it comes from, and what it leaves out."""

from __future__ import annotations

import shlex

import pytest

from tinyscale.errors import ResultsError
from tinyscale.results.provenance import launch_provenance
from tinyscale.storage import Folder


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (
            ["--results", "s3://AKIAKEY:SECRET@b/r?endpoint_override=h:1"],
            ["--results", "s3://***@b/r?endpoint_override=h:1"],
        ),
        (["--results", "s3://AKIAKEY:SEC/R+T@b/r"], ["--results", "s3://***@b/r"]),
        (
            ["s3://b/r?access_key=SECRET&secret_key=SECRET&scheme=http"],
            ["s3://b/r?access_key=***&secret_key=***&scheme=http"],
        ),
        (["--token", "SECRET", "-y"], ["--token", "***", "-y"]),
        (["--api-key=SECRET"], ["--api-key=***"]),
        (["WANDB_API_KEY=SECRET and more"], ["WANDB_API_KEY=***"]),
        (["hfToken=SECRET"], ["hfToken=***"]),
    ],
)
def test_a_secret_on_the_command_line_is_not_recorded(given: list[str], shown: list[str]) -> None:
    command = launch_provenance(["tinyscale", "launch", "s.yaml", *given])["command"]
    assert "SECRET" not in command
    assert shlex.split(command)[3:] == shown


def test_what_only_looks_like_a_secret_is_recorded() -> None:
    command = (
        "tinyscale launch a@b.yaml --set data.tokenizer.kind=byte --set train.tokens_budget=1M --results s3://b/a@c"
    )
    assert launch_provenance(command.split())["command"] == command


def test_an_address_that_cannot_be_reached_is_named_without_its_secrets() -> None:
    with pytest.raises(ResultsError, match=r"gopher://\*\*\*@x/y: not a folder") as caught:
        Folder.at("gopher://KEY:SECRET@x/y")
    assert "SECRET" not in str(caught.value)
