"""The command line as a user meets it: run as a program, in a folder of its own."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

from helpers import ROOT
from helpers.programs import invoke
from helpers.results import write
from helpers.sweeps import SWEEP, write_tiny_sweep
from helpers.trials import known_trial
from tinyscale.cli import cli, main
from tinyscale.cli.options import DONE, ERROR, SOME_FAILED, STOPPED
from tinyscale.cli.sweeps import launch_status
from tinyscale.errors import ResultsError
from tinyscale.orchestration.summary import Summary
from tinyscale.results.store import Results
from tinyscale.spec.state import State

Said = Callable[..., subprocess.CompletedProcess[str]]


def tinyscale(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "tinyscale", *map(str, arguments)]
    return subprocess.run(program, cwd=cwd, capture_output=True, text=True)


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Said:
    """What the program says in the test's folder; run in this process, as most of a short command is its start."""

    def of(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["tinyscale", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return subprocess.CompletedProcess(sys.argv, int(ended.value.code or 0), *capsys.readouterr())

    return of


@pytest.fixture
def sweep(tmp_path: Path, long_corpus: Path) -> Path:
    text = SWEEP.replace("{kind: byte}", "{kind: byte}, val_bytes: 101K")
    return write_tiny_sweep(tmp_path, text + "axes: {d_model: [16, 32]}\nseeds: [0, 1]\n", corpus=long_corpus)


COMMANDS = sorted(cli.commands)


def test_the_commands_promised_are_there() -> None:
    assert {"plan", "launch", "fit"} <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_command_is_documented(name: str) -> None:
    command = cli.commands[name]
    assert command.help, "says what it does"
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
            assert parameter.help.endswith((".", "]")), parameter.name


@pytest.mark.parametrize("arguments", [("--help",), *((name, "--help") for name in COMMANDS)], ids=" ".join)
def test_help_tells_all_and_comes_at_once(tmp_path: Path, arguments: tuple[str, ...], record_property: object) -> None:
    begun = time.monotonic()
    done = tinyscale(*arguments, cwd=tmp_path)
    print(f"{' '.join(arguments)}: {time.monotonic() - begun:.2f} s")
    assert done.returncode == 0
    assert done.stderr == ""
    assert "..." not in done.stdout.split("Commands:")[-1].split("Examples:")[0] or len(arguments) == 2, "none is cut"
    wanted = COMMANDS
    if len(arguments) == 2:
        options = [p for p in cli.commands[arguments[0]].params if isinstance(p, click.Option)]
        wanted = [name for option in options for name in option.opts]
    assert all(name in done.stdout for name in wanted)
    assert list(tmp_path.iterdir()) == [], "help writes nothing"


@pytest.mark.parametrize("name", ["plan", "launch"])
def test_the_options_that_hold_on_every_command_of_a_sweep(name: str) -> None:
    options = {option for parameter in cli.commands[name].params for option in parameter.opts}
    assert {"--results", "--set", "--select"} <= options
    assert ("--json" in options) == (name == "plan")
    assert ("-y" in options) == (name == "launch")


def test_plan_prints_json_and_nothing_else(sweep: Path, tmp_path: Path) -> None:
    done = tinyscale("plan", sweep, "--json", "--set", "lr=2e-2", "--select", "seed=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [trial["d_model"] for trial in told["trials"]] == [16, 32]
    for trial in told["trials"]:
        assert len(trial["trial"]) == 16
        assert trial["seed"] == 1
        assert trial["n_total"] == trial["n_non_embedding"] + trial["n_embedding"] + trial["n_lm_head"]
        assert trial["tokens"] == 5120
        assert trial["flops"] > 6 * trial["n_matmul"] * trial["tokens"]
        assert trial["state"] == "new"
        assert trial["seconds"] > 0
    assert told["seconds"] > 0
    assert not (tmp_path / "results").exists(), "planning writes no results"


def test_plan_prints_a_table_the_work_and_its_warnings(sweep: Path, tmp_path: Path) -> None:
    done = tinyscale("plan", sweep, "--results", "elsewhere", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for told in (
        "d_model",
        "FLOPs",
        "2 new",
        "4 trials: 0 finished, 4 to run",
        "expected time",
        "only 20 optimizer steps",
    ):
        assert told in done.stdout, told


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("plan", "nowhere.yaml"), "error: nowhere.yaml: no such file"),
        (("launch", "nowhere.yaml", "-y"), "error: nowhere.yaml: no such file"),
        (
            ("plan", "tiny.yaml", "--set", "d_mode=3"),
            "error: --set d_mode=3: 'd_mode' names no field; nearest: model.d_model",
        ),
        (
            ("plan", "tiny.yaml", "--set", "data.tokenizer.knd=char"),
            "error: --set data.tokenizer.knd=char: 'data.tokenizer.knd' names no field; nearest: data.tokenizer.kind\n"
            "  legal: data.tokenizer.kind, data.tokenizer.vocab_size\n",
        ),
        (("plan", "tiny.yaml", "--select", "d_model=3"), "error: --select d_model=3: d_model never is 3; it is 16, 32"),
        (
            ("plan", "tiny.yaml", "--set", "corpus=no.txt"),
            "error: --set corpus=no.txt: data.corpus 'no.txt' is neither",
        ),
        (("plan", "tiny.yaml", "--results", "gopher://x"), "error: gopher://x: not a folder that can be reached"),
        (("fit", "nowhere"), "error: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_one_block_and_exit_status_1(
    sweep: Path, tmp_path: Path, arguments: tuple[str, ...], says: str, said: Said
) -> None:
    done = said(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(says)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "results").exists()


def test_a_wrong_option_is_clicks_own_error(sweep: Path, said: Said) -> None:
    done = said("plan", sweep, "--frobnicate")
    assert done.returncode == 2
    assert "No such option" in done.stderr


def test_a_traceback_comes_only_with_debug(said: Said) -> None:
    done = said("--debug", "fit", "nowhere")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert done.stderr.splitlines()[-1].startswith("error: nowhere: no such folder")


@pytest.mark.parametrize("command", [
    ("status",), ("status", "--json"), ("retry", "--state", "failed"),
    ("fit",), ("report",), ("plot", "--out", "a.svg"), ("ls",), ("du",),
])  # fmt: skip
def test_a_results_folder_that_is_not_there_is_said_to_be_missing(said: Said, command: tuple[str, ...]) -> None:
    name, *options = command
    done = said(name, "rseults", *options)
    assert done.returncode == 1
    assert done.stderr == "error: rseults: no such folder; launch a sweep into it first, or name another\n"


@pytest.mark.parametrize(("word", "offered"), [("pl", ["plan", "plot"]), ("sug", ["suggest"])])
def test_bash_completes_commands(tmp_path: Path, word: str, offered: list[str]) -> None:
    """As `eval "$(_TINYSCALE_COMPLETE=bash_source tinyscale)"` has bash ask."""
    program = Path(sys.executable).parent / "tinyscale"
    asked = {"_TINYSCALE_COMPLETE": "bash_complete", "COMP_WORDS": f"tinyscale {word}", "COMP_CWORD": "1"}
    done = subprocess.run([program], env={**os.environ, **asked}, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == [f"plain,{name}" for name in offered]


def test_the_line_of_the_guide_sets_completion_up_in_bash(tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "running.md").read_text()
    (line,) = re.findall(r"^eval .*", guide, flags=re.M)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    script = f"{line}\ncomplete -p tinyscale"
    done = subprocess.run(["bash", "-c", script], env={**os.environ, "PATH": path}, cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"-F _tinyscale_completion" in done.stdout


@pytest.mark.parametrize("given", [["results"], ["--results", "results"], []])
def test_a_results_folder_is_an_argument_or_an_option(tmp_path: Path, given: list[str], said: Said) -> None:
    (tmp_path / "results").mkdir()
    assert json.loads(said("status", *given, "--json").stdout)["sweeps"] == []


def test_two_results_folders_are_refused(said: Said) -> None:
    done = said("status", "one", "--results", "two")
    assert done.returncode == 2
    assert "name two folders; give one" in done.stderr


def test_every_command_that_reads_or_writes_results_takes_the_option() -> None:
    without = {
        name for name, command in cli.commands.items() if "--results" not in str([p.opts for p in command.params])
    }
    assert without == {"corpora", "import"}


def test_the_statuses_that_the_guide_lists_are_those_of_the_program() -> None:
    guide = (ROOT / "docs" / "running.md").read_text()
    listed = [int(status) for status in re.findall(r"^\| (\d+) \|", guide, flags=re.M)]
    assert listed == [DONE, ERROR, click.UsageError.exit_code, SOME_FAILED, STOPPED]


@pytest.mark.parametrize(
    ("outcome", "status"),
    [(None, DONE), (ResultsError("x"), ERROR), (click.UsageError("x"), 2), (click.Abort(), STOPPED),
     (KeyboardInterrupt(), STOPPED), (SystemExit(SOME_FAILED), SOME_FAILED)],
    ids=repr,
)  # fmt: skip
def test_each_way_to_end_has_a_status_of_its_own(
    monkeypatch: pytest.MonkeyPatch, outcome: BaseException | None, status: int
) -> None:
    def run() -> None:
        if outcome is not None:
            raise outcome

    monkeypatch.setitem(cli.commands, "made", click.Command("made", callback=run))
    monkeypatch.setattr(sys, "argv", ["tinyscale", "made"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code or 0) == status


@pytest.mark.parametrize(
    ("states", "stopped", "status"),
    [
        (["finished"], False, DONE),
        (["finished", "diverged"], False, DONE),
        (["failed", "finished"], False, SOME_FAILED),
        (["failed"], True, STOPPED),
    ],
)
def test_a_launch_says_in_its_status_how_it_went(states: list[str], stopped: bool, status: int) -> None:
    summary = Summary(slots=1, expected_seconds=None, stopped=stopped)
    summary.states = {str(number): State(state) for number, state in enumerate(states)}
    assert launch_status(summary) == status


def test_no_to_a_question_is_stopped_and_nothing_is_done(results: Results, tmp_path: Path) -> None:
    write(results, known_trial())
    program = [sys.executable, "-m", "tinyscale", "retry", "results", "--state", "finished"]
    done = subprocess.run(program, cwd=tmp_path, input="n\n", capture_output=True, text=True)
    assert done.returncode == STOPPED
    assert done.stderr == "stopped\n"
    assert len(results.states()) == 1


@pytest.mark.parametrize("where", ["/proc/results", "taken/results", "x" * 300, "s3:/bucket/results"])
def test_results_that_cannot_be_written_are_one_error_before_ray_starts(
    sweep: Path, tmp_path: Path, where: str, said: Said
) -> None:
    (tmp_path / "taken").write_text("a file")
    done = said("launch", sweep, "-y", "--results", where)
    assert done.returncode == ERROR
    assert done.stderr.startswith(f"error: {where}: ")
    assert "Traceback" not in done.stderr
    assert "starting Ray" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("predict", "results", "--n", "-5"), "'-5' is not above zero and finite"),
        (("predict", "results", "--flops", "inf"), "'inf' is not above zero and finite"),
        (("predict", "results"), "say what to predict: --n 10M"),
        (("plan", "tiny.yaml", "--price", "-3"), "-3.0 is not in the range x>=0"),
        (("retry", "results", "--state", "failed", "--sweep", "nope"), "no sweep 'nope' in results; there are none"),
    ],
)
def test_a_value_that_means_nothing_is_wrong_usage(
    tmp_path: Path, arguments: tuple[str, ...], says: str, said: Said
) -> None:
    (tmp_path / "results").mkdir()
    done = said(*arguments)
    assert done.returncode == 2
    assert says in done.stderr


def test_a_folder_without_trials_has_none_to_sample_from(said: Said) -> None:
    done = said("sample", "abc")
    assert done.stderr.startswith("error: no trials in results/trials; launch a sweep into it")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_in_the_help_of_a_command_are_that_command_and_parse(name: str) -> None:
    command = cli.commands[name]
    assert command.epilog
    lines = re.findall(r"^  tinyscale (.*)", command.epilog, re.MULTILINE)
    assert lines
    for line in lines:
        called, *words = shlex.split(line)
        assert called == name
        command.make_context(name, words)


def test_a_folder_without_sweeps_is_said_to_be_one(tmp_path: Path, said: Said) -> None:
    (tmp_path / "results").mkdir()
    assert said("status").stdout == "no sweeps in results yet; launch one into it\n"


@pytest.mark.skipif(find_spec("mlflow") is not None, reason="mlflow is installed")
def test_a_log_that_is_not_installed_is_said_before_anything_is_planned(said: Said) -> None:
    done = said("launch", "nowhere.yaml", "--log", "mlflow")
    assert done.returncode == ERROR
    assert done.stderr.startswith("error: --log mlflow needs a package that is not installed: pip install mlflow")


def test_weights_along_training_and_no_weights_are_not_asked_for_together() -> None:
    asked = invoke("launch", "nowhere.yaml", "--keep", "none", "--keep-every", "100K")
    assert (asked.exit_code, "--keep none does not: give one of them" in asked.output) == (2, True)
    wrong = invoke("launch", "nowhere.yaml", "--keep-every", "often")
    assert "'often' is not a number; write 10M" in wrong.output
