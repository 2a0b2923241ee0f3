"""The README's commands exist as written, and continuous integration runs the one it names."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

from helpers import ROOT
from tinyscale.cli import cli

TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def shell_blocks(text: Path) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", text.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands(text: Path) -> list[list[str]]:
    """Every `tinyscale ...` in the shell blocks, as words."""
    lines = "\n".join(shell_blocks(text)).replace("\\\n", " ").splitlines()
    parts = [part.split("#")[0] for line in lines for part in re.split(r"&&|\|\|", line)]
    words = [shlex.split(part) for part in parts if part.strip()]
    return [each[1:] for each in words if Path(each[0]).name == "tinyscale"]


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.name)
def test_each_tinyscale_command_in_the_text_parses_as_written(text):
    for words in commands(text):
        if not words or words == ["--help"]:
            continue
        name, command, rest = cli.resolve_command(click.Context(cli), words)
        command.make_context(name, list(rest), resilient_parsing="--help" in rest)
        for word in rest:
            if word.endswith(".yaml") and word.startswith("sweeps/"):
                assert (ROOT / word).exists(), word


def test_the_readme_starts_with_one_command_to_run_the_main_job_and_one_to_test():
    run, test, *_ = shell_blocks(ROOT / "README.md")
    assert "tune -y sweeps/quickstart.yaml" in run
    assert "launch -y sweeps/quickstart.yaml" in run
    assert "fit results/" in run
    assert "-m pytest" in test
    for command in (run, test):
        assert "-c constraints.txt" in command


def test_every_command_has_help_and_is_named_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    for name, command in cli.commands.items():
        assert command.help, name
        assert f"tinyscale {name}" in readme, name


def test_continuous_integration_runs_the_readmes_test_command():
    script = (ROOT / ".ci" / "run").read_text()
    extract = re.search(r"command=\$\((.*)\)$", script, flags=re.MULTILINE)
    assert extract
    found = subprocess.run(["bash", "-c", extract[1]], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert found.strip() == shell_blocks(ROOT / "README.md")[1].strip()
