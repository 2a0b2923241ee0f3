"""Results and checkpoints on S3, against a server that answers, goes away and comes back."""

from __future__ import annotations

import signal
import threading

import optuna
import pandas as pd
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from helpers.launches import RAY_WARNS, planned, run
from helpers.programs import PATIENCE, tinyscale, wait_for
from helpers.sweeps import write_search, write_sweep
from tinyscale import storage
from tinyscale.errors import ResultsError
from tinyscale.results.store import Results
from tinyscale.storage import Folder
from tinyscale.training.loop import RESUME, WEIGHTS

pytestmark = RAY_WARNS


def test_files_are_written_listed_replaced_and_deleted(server):
    folder = Folder.at(server.uri("files")) / "trials"
    assert folder.names() == []
    folder.write("b", b"two")
    folder.write("a", b"one")
    folder.write("a", b"1")
    assert (folder.names(), folder.read("a"), folder.exists("b")) == (["a", "b"], b"1", True)
    folder.delete("b")
    folder.delete("b")
    assert folder.names() == ["a"]
    with pytest.raises(FileNotFoundError):
        folder.read("b")
    assert "testing:" not in str(folder), "keys are not shown"


def test_a_bucket_that_is_not_there_holds_nothing_and_says_so_before_a_launch(server):
    folder = Folder.at(server.uri("results", bucket="nowhere"))
    assert folder.names() == []
    assert not folder.exists("a")
    with pytest.raises(ResultsError, match="there is no bucket nowhere"):
        folder.require_reachable()
    with pytest.raises(ResultsError, match=r"s3://nowhere/results: cannot be used .*bucket does not exist"):
        folder.write("a", b"")


def test_a_store_that_comes_back_is_waited_for(server):
    folder = Folder.at(server.uri("away"))
    folder.write("a", b"before")
    server.stop()
    back = threading.Timer(3.0, server.start)
    back.start()
    folder.write("b", b"after")
    back.join()
    assert (folder.read("a"), folder.names()) == (b"before", ["a", "b"])


@pytest.mark.slow
def test_a_store_that_stays_away_is_an_error_in_words(server, monkeypatch):
    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 0.0)
    folder = Folder.at(server.uri("gone"))
    server.stop()
    try:
        with pytest.raises(ResultsError, match=r"s3://.*/gone: cannot be used .*check the address and the network"):
            folder.write("a", b"")
        with pytest.raises(ResultsError, match="cannot be used"):
            folder.require_reachable()
    finally:
        server.start()


@pytest.mark.slow
def test_a_launch_on_s3_rides_out_a_minute_without_it_and_a_second_one_trains_only_what_is_new(
    tmp_path, server, cluster
):
    """Its numbers are those of a launch on the local disk, and pandas reads the rows as they lie there."""
    results = Results(server.uri("launched"))
    local = Results(str(tmp_path / "local"))
    path = write_sweep(tmp_path, tokens="100K", widths="[8]")
    run(planned(path, local), local, cluster)
    plan = planned(path, results)
    identity = plan.trials[0].trial.identity

    def drop() -> None:
        wait_for(lambda: results.trials.exists(f"{identity}.parquet"))
        server.stop()
        threading.Timer(60.0, server.start).start()

    outage = threading.Thread(target=drop)
    outage.start()
    assert set(run(plan, results, cluster).states.values()) == {"finished"}
    outage.join()
    extended = planned(write_sweep(tmp_path, tokens="100K", widths="[8, 16]"), results)
    assert [each.cell.axes["d_model"] for each in extended.to_run] == [16]
    assert set(run(extended, results, cluster).states.values()) == {"finished"}
    assert results.checkpoints(identity).names() == [WEIGHTS]
    rows = pd.read_parquet(results.trials.path, filesystem=results.trials.fs)
    measured = rows.loc[rows["trial"] == identity, "val_loss"].reset_index(drop=True)
    pd.testing.assert_series_equal(measured, local.read()[0]["val_loss"])


@pytest.mark.slow
def test_a_search_on_s3_goes_on_with_its_study(tmp_path, server, cluster):
    results, path = Results(server.uri("searched")), write_search(tmp_path, trials=2)
    run(planned(path, results), results, cluster)
    assert set(run(planned(path, results, "search.trials=3"), results, cluster).states.values()) == {"finished"}
    journal = tmp_path / "copy.log"
    journal.write_bytes((results.folder / "optuna").read("rates.log"))
    storage = JournalStorage(JournalFileBackend(str(journal)))
    assert [summary.n_trials for summary in optuna.get_all_study_summaries(storage)] == [3, 3]
    (record,) = results.read_sweeps()
    assert len(set(record.trials)) == 6


@pytest.mark.slow
def test_an_interrupted_launch_on_s3_goes_on_from_its_checkpoint(tmp_path, server):
    path, uri = write_sweep(tmp_path, tokens="200K", widths="[8]"), server.uri("interrupted")
    results = Results(uri)
    program = tinyscale("launch", "-y", "--quiet", str(path), "--results", uri, cwd=tmp_path)
    wait_for(lambda: bool(results.trials.names()), program=program)
    program.send_signal(signal.SIGINT)
    output, _ = program.communicate(timeout=PATIENCE)
    assert program.returncode == 130, output
    identity = results.trials.names()[0].removesuffix(".parquet")
    assert results.checkpoints(identity).names() == [RESUME]
    again = tinyscale("launch", "-y", "--quiet", str(path), "--results", uri, cwd=tmp_path)
    output, _ = again.communicate(timeout=PATIENCE)
    assert again.returncode == 0, output
    assert results.state(identity) == "finished"


@pytest.mark.slow
def test_a_launch_says_that_its_store_cannot_be_reached_before_ray_starts(tmp_path, server):
    program = tinyscale(
        "launch", "-y", str(write_sweep(tmp_path)), "--results", server.uri("r", "nowhere"), cwd=tmp_path
    )
    output, _ = program.communicate(timeout=PATIENCE)
    assert program.returncode == 1
    assert "there is no bucket nowhere" in output
    assert "starting Ray" not in output
