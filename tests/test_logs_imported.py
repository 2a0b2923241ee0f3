"""Logs of other tools become a table that `tinyscale fit` reads; files are written by the tools where they are here."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from helpers.programs import invoke
from tinyscale.analysis.log_table import read_mapping, table_of
from tinyscale.analysis.logs import read_logs
from tinyscale.errors import ConfigError, ResultsError

SIZES = (1e4, 3e4, 1e5, 3e5, 1e6)
MAPPING = """\
n: params
d: {key: step, times: 256}
loss: eval/loss
seed: {run: 's(\\d+)$'}
lr: {value: 0.001}
"""


def loss_at(n: float, step: int) -> float:
    return float(1.5 + 40 * n**-0.35 + 1 / step)


def write_mapping(folder: Path, text: str = MAPPING) -> Path:
    (folder / "mapping.yaml").write_text(text)
    return folder / "mapping.yaml"


def write_lines(path: Path, records: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """A file for each of five sizes and two seeds: parameters, two evaluations, training in between."""
    for n in SIZES:
        for seed in (0, 1):
            records: list[dict[str, Any]] = [{"params": n, "config": {"note": "a"}}]
            for step in (100, 150, 200):
                records.append({"step": step, "train": {"loss": 9.0}})
                if step != 150:
                    records.append({"step": step, "eval/loss": loss_at(n, step)})
            records.append({"step": 210, "train": {"loss": 9.0}})
            write_lines(tmp_path / "logs" / f"n{n:.0f}" / f"s{seed}.jsonl", records)
    return tmp_path / "logs"


def test_lines_of_json_become_the_last_points_that_a_mapping_names(logs: Path, tmp_path: Path) -> None:
    made = table_of(read_logs(str(logs)), read_mapping(write_mapping(tmp_path)))
    assert list(made.frame.columns) == ["run", "n", "d", "loss", "seed", "lr"]
    assert (made.runs, len(made.frame), made.left_out) == (10, 10, ())
    row = made.frame.set_index("run").loc["n30000/s1"]
    assert row.to_dict() == pytest.approx({"n": 3e4, "d": 200 * 256, "loss": loss_at(3e4, 200), "seed": 1, "lr": 1e-3})


def test_the_whole_curve_has_a_row_for_each_loss(logs: Path, tmp_path: Path) -> None:
    frame = table_of(read_logs(str(logs)), read_mapping(write_mapping(tmp_path)), curve=True).frame
    assert len(frame) == 20
    assert frame[frame["run"] == "n10000/s0"]["d"].tolist() == [25600, 51200]


def test_without_a_mapping_every_key_is_a_column(logs: Path) -> None:
    frame = table_of(read_logs(str(logs))).frame
    assert list(frame.columns) == ["run", "params", "config.note", "step", "train.loss", "eval/loss"]
    assert frame["step"].unique().tolist() == [210]


@pytest.mark.parametrize("name", ["runs.csv", "runs.parquet", "folder"])
def test_the_table_is_fitted_as_it_is_written(logs: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    done = invoke("import", str(logs), "--map", str(write_mapping(tmp_path)), "--out", str(out))
    path = out if out.suffix else out / "runs.csv"
    assert done.output == f"10 runs, 10 rows: wrote {path}\nnext: tinyscale fit {path}\n"
    fitted = invoke("fit", str(path), "--results", str(tmp_path / "fits"), "--bootstrap", "100", "--json")
    (found,) = json.loads(fitted.stdout)
    assert found["params"]["alpha"]["value"] == pytest.approx(0.35, abs=0.02)
    with pytest.raises(ResultsError, match="this file exists; delete it, or give another --out"):
        invoke("import", str(logs), "--out", str(path))


def test_a_run_whose_last_loss_is_no_number_is_diverged_and_one_without_a_loss_is_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    write_lines(folder / "a.jsonl", [{"step": 1, "params": 5, "eval/loss": 2.0}])
    write_lines(
        folder / "b.jsonl", [{"step": 1, "params": 5, "eval/loss": 2.0}, {"step": 2, "eval/loss": float("nan")}]
    )
    write_lines(folder / "c.jsonl", [{"step": 1, "params": 5}])
    made = table_of(read_logs(str(folder)), read_mapping(write_mapping(tmp_path)))
    assert made.frame[["run", "state"]].to_numpy().tolist() == [["a", "finished"], ["b", "diverged"]]
    assert made.left_out == ("c",)


def test_one_file_may_hold_several_runs_and_end_in_the_middle_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    write_lines(path, [{"run": name, "step": step, "loss": 1.0} for step in (1, 2) for name in ("a", "b")])
    with path.open("a") as file:
        file.write('{"run": "a", "st')
    frame = table_of(read_logs(str(path))).frame
    assert frame[["run", "step"]].to_numpy().tolist() == [["a", 2], ["b", 2]]
    path.write_text('{"loss": 1}\n{"loss"\n{"loss": 2}\n')
    with pytest.raises(ResultsError, match=r"all.jsonl, line 2: not a line of JSON"):
        read_logs(str(path))


def test_a_table_of_runs_that_wandb_exported_keeps_the_states(tmp_path: Path) -> None:
    table = pd.DataFrame({
        "Name": ["s0", "s1", "s2"], "State": ["finished", "crashed", "finished"], "params": [10, 20, 30],
        "step": [100, 50, 100], "eval/loss": [3.0, 4.0, None],
    })  # fmt: skip
    table.to_csv(tmp_path / "wandb.csv", index=False)
    made = table_of(read_logs(str(tmp_path / "wandb.csv")), read_mapping(write_mapping(tmp_path)))
    assert made.frame[["run", "n", "d", "loss", "seed", "state"]].to_numpy().tolist() == [
        ["s0", 10, 25600, 3.0, 0.0, "finished"],
        ["s1", 20, 12800, 4.0, 1.0, "crashed"],
    ]
    assert made.left_out == ("s2",)


def test_a_chart_that_wandb_exported_is_read_by_its_columns(tmp_path: Path) -> None:
    chart = {"Step": [1, 2, 3]}
    for run, losses in (("n10 - s0", [4.0, 3.5, None]), ("n20 - s1", [4.0, None, 3.0])):
        chart |= {f"{run} - eval/loss{part}": losses for part in ("", "__MIN", "__MAX")}
    pd.DataFrame(chart).to_csv(tmp_path / "chart.csv", index=False)
    taken = read_mapping(write_mapping(tmp_path, "n: {run: 'n(\\d+)'}\nd: {key: step, times: 10}\nloss: eval/loss\n"))
    frame = table_of(read_logs(str(tmp_path / "chart.csv")), taken).frame
    assert frame.to_numpy().tolist() == [["n10 - s0", 10.0, 20, 3.5], ["n20 - s1", 20.0, 30, 3.0]]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("n: params\n", "loss is missing: say which key has it"),
        ("loss: a\nm: b\n", r"mapping.yaml, line 2: no law reads 'm'.*\n  legal: n, d, c"),
        ("loss: {kee: a}\n", "line 1: kee: .*; legal: key, run, value, times"),
        ("loss: {key: a, value: 1}\n", "give one of key, run .* and value"),
        ("loss: a\nn: {run: 'n('}\n", "line 2: run = 'n\\(' is not a regular expression"),
        ("loss: a\nn: {run: 'n'}\n", "line 2: give one of key, run"),
        ("- loss\n", "a mapping file has keys such as n, d, loss"),
    ],
)
def test_a_mistake_in_a_mapping_names_the_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_mapping(write_mapping(tmp_path, text))


def test_a_key_that_no_run_has_is_named_with_those_that_are_there(logs: Path, tmp_path: Path) -> None:
    taken = read_mapping(write_mapping(tmp_path, "loss: eval/los\n"))
    with pytest.raises(ResultsError, match="no run has logged 'eval/los'; nearest: eval/loss; there are params"):
        table_of(read_logs(str(logs)), taken)


def test_what_is_no_log_is_an_error_with_what_can_be_read(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="no such file or folder"):
        read_logs(str(tmp_path / "nowhere"))
    with pytest.raises(ResultsError, match="no logs that can be read; give a folder with TensorBoard's event files"):
        read_logs(str(tmp_path))


def write_events(folder: Path) -> None:
    """Two runs as Ray and torch write them."""
    writers = pytest.importorskip("tensorboardX", reason="tensorboardX, which writes event files, is not installed")
    for seed in (0, 1):
        with writers.SummaryWriter(str(folder / f"s{seed}")) as writer:
            writer.add_scalar("params", 10 + seed, 0)
            for step in (1, 2):
                writer.add_scalar("eval/loss", 4.0 / step, step)


def test_event_files_are_read_by_tensorboards_own_reader(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard, which reads event files, is not installed")
    write_events(tmp_path / "events")
    frame = table_of(read_logs(str(tmp_path / "events")), read_mapping(write_mapping(tmp_path))).frame
    assert frame.drop(columns="lr").to_numpy().tolist() == [["s0", 10, 512, 2.0, 0], ["s1", 11, 512, 2.0, 1]]


@pytest.mark.filterwarnings("ignore")  # of MLflow's own database
@pytest.mark.parametrize("store", ["mlruns", "mlflow.db"])
def test_a_store_is_read_by_mlflows_own_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str) -> None:
    tracking = pytest.importorskip("mlflow.tracking", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    place = f"sqlite:///{tmp_path / store}" if store.endswith(".db") else (tmp_path / store).as_uri()
    client = tracking.MlflowClient(tracking_uri=place)
    experiment = client.create_experiment("width")
    for seed, state in enumerate(("FINISHED", "FAILED")):
        run = client.create_run(experiment, run_name=f"s{seed}").info.run_id
        client.log_param(run, "params", 10 + seed)
        for step in (1, 2):
            client.log_metric(run, "eval/loss", 4.0 / step, step=step)
        client.set_terminated(run, state)
    frame = table_of(read_logs(str(tmp_path / store)), read_mapping(write_mapping(tmp_path))).frame
    found = frame.sort_values("run")[["run", "n", "d", "loss", "state"]].to_numpy().tolist()
    assert found == [["s0", 10, 512, 2.0, "finished"], ["s1", 11, 512, 2.0, "failed"]]


@pytest.mark.parametrize("package", ["tensorboard", "mlflow"])
def test_a_reader_that_is_not_installed_is_an_error_that_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    for loaded in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ("events.out.tfevents.1.host" if package == "tensorboard" else "meta.yaml")).write_bytes(b"")
    with pytest.raises(ResultsError, match=rf"not installed \({package}.*\): pip install 'tinyscale\[import\]'"):
        read_logs(str(tmp_path))
