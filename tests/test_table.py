"""Tables of other people: what they hold is read rightly, and how is said, or it is refused in words."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from helpers.programs import invoke
from tinyscale.analysis.fit_frame import fit_frame
from tinyscale.analysis.study import Analysis, find_laws
from tinyscale.analysis.table import read_table
from tinyscale.analysis.table_file import read_file, to_number
from tinyscale.errors import FitError, ResultsError
from tinyscale.reporting.write import analyse

TRUE = {"E": 1.82, "alpha": 0.35, "beta": 0.37}


def law(n: Any, d: Any) -> Any:
    return TRUE["E"] + 480.0 * n ** -TRUE["alpha"] + 2100.0 * d ** -TRUE["beta"]


def grid(sizes: int = 6) -> pd.DataFrame:
    """Runs of a law in N, D and C, with noise of 0.2 %."""
    n = np.repeat(np.geomspace(5e7, 5e9, sizes).round(), sizes)
    d = np.tile(np.geomspace(1e9, 1e11, sizes).round(), sizes)
    noise = np.exp(0.002 * np.random.default_rng(1).standard_normal(len(n)))
    return pd.DataFrame({"N": n, "D": d, "C": 6 * n * d, "loss": law(n, d) * noise})


def laws_of(folder: Path, frame: pd.DataFrame, name: str = "runs.csv", **options: Any) -> Analysis:
    frame.to_csv(folder / name, index=False)
    return find_laws(str(folder / name), **options)


def is_the_law(found: Any) -> bool:
    return bool(
        found.interval("alpha")[0] < TRUE["alpha"] < found.interval("alpha")[1] and found.law.name == "chinchilla"
    )


@pytest.mark.parametrize(
    ("names", "given", "said"),
    [
        (["params", "flops_used"], {"n": "params", "c": "flops_used"}, "d is not given: taken as c / 6 n"),
        (["training_tokens", "compute_budget"], {}, "n is not given: taken as c / 6 d"),
        (["Model Size", "Training FLOP"], {}, "read: n = Model Size, c = Training FLOP, loss = loss"),
        (["N", "D"], {}, "read: n = N, d = D, loss = loss; c is not given: taken as 6 n d"),
        (["n_params", "C"], {}, "d is not given"),
        (["config.num_params", "summary/tokens_seen"], {}, "n = config.num_params, d = summary/tokens_seen"),
        (["Params [count]", "Tokens Seen"], {}, "n = Params [count], d = Tokens Seen"),
    ],
)
def test_two_of_parameters_tokens_and_compute_give_the_third_and_the_joint_law(
    tmp_path: Path, names: list[str], given: dict[str, str], said: str
) -> None:
    frame = grid()
    known = {"param": "N", "model": "N", "n": "N", "config": "N", "tok": "D", "training_t": "D", "d": "D", "summ": "D"}
    columns = {}
    for name in names:
        size = "C" if "flop" in name.lower() or "comp" in name or name == "C" else ""
        size = size or next(size for start, size in known.items() if name.lower().startswith(start))
        columns[name] = frame[size]
    done = laws_of(tmp_path, pd.DataFrame({**columns, "loss": frame["loss"]}), columns=given)
    assert is_the_law(done.fits[0])
    assert said in done.reading[0]


def test_three_sizes_are_checked_against_each_other(tmp_path: Path) -> None:
    frame = grid()
    with pytest.raises(FitError, match="a unit mistake"):
        laws_of(tmp_path, frame.assign(N=frame["N"] / 1e6))
    said = "\n".join(laws_of(tmp_path, frame.assign(C=frame["C"] * np.where(np.arange(36) == 7, 10, 1))).reading)
    assert "line 9: c is 10 times" in said
    assert "c is 0.33 times 6 n d throughout" in "\n".join(laws_of(tmp_path, frame.assign(C=frame["C"] / 3)).reading)


@pytest.mark.parametrize(
    ("head", "scale"),
    [
        ("Params (M)", 1e6),
        ("n_params_b", 1e9),
        ("N [1e6]", 1e6),
        ("N (×10⁶)", 1e6),
        ("M params", 1e6),
        ("Parameter (Mio.)", 1e6),
        ("params (hundreds of millions)", 1e8),
        ("params (1,000s)", 1e3),
        ("params (thousand million)", 1e9),
    ],
)
def test_a_unit_in_the_header_is_applied_and_said(tmp_path: Path, head: str, scale: float) -> None:
    frame = grid().rename(columns={"N": head})
    done = laws_of(tmp_path, frame.assign(**{head: frame[head] / scale}))
    assert is_the_law(done.fits[0])
    assert f"{head}: its header says a unit" in done.reading[1]


def read(folder: Path, text: str | bytes, name: str = "runs.csv") -> Any:
    """A file's reading, and its n, d and loss."""
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    reading = read_table(read_file(str(folder / name)), {})
    values = [reading.frame[reading.columns[each]].to_numpy() for each in ("n", "d", "loss") if each in reading.columns]
    return reading, np.array(values, dtype=float).T


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ("params (MM),tokens,loss", "params (MM): what 'mm' means in its header is not known"),
        ("params,tokens,loss (nats per byte)", "loss (nats per byte): what 'nats per byte' means in its header is not"),
        ("params,tokens,loss (bits/token)", "in bits, so its numbers are taken times ln 2"),
        ("params,tokens,loss,lr (1e-3)", "lr (1e-3): its header says a unit, so its numbers are taken times 0.001"),
    ],
)
def test_no_unit_in_a_header_is_passed_over_in_silence(tmp_path: Path, head: str, said: str) -> None:
    rows = [(5e7, 1e9, 3.5, 2), (6e7, 1e9, 3.25, 4)]
    lines = [",".join(map(str, row[: head.count(",") + 1])) for row in rows]
    reading, values = read(tmp_path, "\n".join([head, *lines]))
    assert said in "\n".join(reading.notes)
    assert values[0, 2] == pytest.approx(3.5 * np.log(2) if "bits" in head else 3.5)
    assert "lr" not in head or reading.frame["lr"].tolist() == [2e-3, 4e-3]


def test_a_cell_with_a_unit_of_its_own_does_not_take_its_headers_as_well(tmp_path: Path) -> None:
    _, values = read(tmp_path, "params (M),tokens,loss\n50M,1e9,3.5\n60,1e9,3.25\n")
    assert values[:, 0].tolist() == [50e6, 60e6]


@pytest.mark.parametrize(
    "text",
    [
        "params,tokens,loss\n(M),(B),(nats)\n50,1,3.5\n60,1,3.25\n",
        "| params | tokens | loss |\n|---|---:|:---|\n| 50M | 1B | 3.5 |\n| 60M | 1B | 3.25 |\n",
        "sep=;\nparams;tokens;loss\n50000000;1000000000;3,500\n60000000;1000000000;3,250\n",
        "params;tokens;loss\n50000000;1000000000;3.500\n60000000;1000000000;3.250\n",
        "params,tokens,loss\n~5×10⁷,10⁹,3.5 ± 0.01\n~6×10⁷,10⁹,3.25 ± 0.01\n",
        "params,tokens,loss\n5e7,1e9,3.5\n6e7,1e9,3.25\n".encode("utf-32"),
    ],
)
def test_what_stands_around_the_numbers_of_a_table_is_understood(tmp_path: Path, text: str | bytes) -> None:
    assert read(tmp_path, text)[1].tolist() == [[5e7, 1e9, 3.5], [6e7, 1e9, 3.25]]


@pytest.mark.parametrize("orient", ["columns", "split", "index", "records", "table"])
def test_json_is_read_in_every_form_that_pandas_writes(tmp_path: Path, orient: Any) -> None:
    text = pd.DataFrame({"n": [5e7, 6e7], "d": 1e9, "loss": [3.5, 3.25]}).to_json(orient=orient)
    assert read(tmp_path, text, "runs.json")[1].tolist() == [[5e7, 1e9, 3.5], [6e7, 1e9, 3.25]]


def test_parquet_is_read_with_its_indices_and_nested_and_exact_columns(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "n": [5e7, 6e7],
            "tokens": pd.Categorical(["1000000000"] * 2),
            "final": [{"val_loss": Decimal("3.5")}, {"val_loss": Decimal("3.25")}],
            "seed": [0, 0],
        }
    )
    buffer = io.BytesIO()
    frame.set_index(["n", "seed"]).to_parquet(buffer)
    assert read(tmp_path, buffer.getvalue(), "runs.parquet")[1].tolist() == [[5e7, 1e9, 3.5], [6e7, 1e9, 3.25]]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("a,5e7,1e9,3\nb,6e7,1e9,2\nc,7e7,1e9,2\n", "loss holds whole numbers only"),
        ("a,5e7,1e9,3.5\nb,6e7,1e9,3.25\nmean,5.5e7,1e9,3.375\n", "line 4 is 'mean' in name: no run"),
    ],
)
def test_numbers_that_no_runs_have_are_refused(tmp_path: Path, rows: str, said: str) -> None:
    with pytest.raises(FitError, match=said):
        read(tmp_path, f"name,params,tokens,loss\n{rows}")


def test_sizes_far_from_all_others_and_headers_without_numbers_are_named(tmp_path: Path) -> None:
    frame = grid().drop(columns="C")
    frame.loc[7, "N"] /= 1e6
    reading, _ = read(tmp_path, frame.assign(flops="$5").to_csv(index=False))
    assert any(note.startswith("N is 125.594 in line 9, 4e+05 times away from all") for note in reading.notes)
    assert "flops: not read as c, its cells are no numbers, the first is '$5'" in reading.notes


def test_a_column_that_the_loss_goes_with_at_equal_sizes_is_named(tmp_path: Path) -> None:
    frame = grid()
    (found,) = laws_of(tmp_path, frame.assign(hours=frame["C"] / 1e15 + np.arange(36)).drop(columns=["C", "D"])).fits
    assert any(
        "the loss goes with hours; if that is a size, name it, as in --columns d=hours" in w for w in found.warnings
    )


def test_counts_that_look_like_billions_are_refused(tmp_path: Path) -> None:
    frame = grid()
    with pytest.raises(FitError, match="in millions or billions"):
        laws_of(tmp_path, frame.assign(N=frame["N"] / 1e9).drop(columns="C"))


def written(frame: pd.DataFrame, count: Callable[[float], str], loss: Callable[[float], str], separator: str) -> str:
    quote = '"' if separator == "," else ""
    rows = [
        separator.join(f"{quote}{text}{quote}" for text in (count(n), count(d), loss(y)))
        for n, d, y in frame[["N", "D", "loss"]].itertuples(index=False)
    ]
    return "\n".join([separator.join(("params", "tokens", "loss")), *rows, ""])


@pytest.mark.parametrize(
    ("count", "loss", "separator"),
    [
        (lambda v: f"{int(v):,}", "{:.5f}".format, ","),
        (lambda v: f"{int(v):,}".replace(",", "."), lambda v: f"{v:.5f}".replace(".", ","), ";"),
        (lambda v: f"{int(v):,}".replace(",", " "), lambda v: f"{v:.3f}".replace(".", ","), ";"),
        (lambda v: f"{v / 1e6:.6f}M", "{:.5f}".format, ","),
        (lambda v: f"{v / 1e9:.9f} B".replace(".", ","), lambda v: f"{v:.5f}".replace(".", ","), ";"),
        ("{:.9e}".format, "{:.5f}".format, "\t"),
        (lambda v: f"{int(v):_}", "{:.5f}".format, "|"),
    ],
)
def test_numbers_are_read_as_people_write_them(tmp_path: Path, count: Any, loss: Any, separator: str) -> None:
    frame = grid()
    (tmp_path / "runs.csv").write_text(written(frame, count, loss, separator))
    reading = read_table(read_file(str(tmp_path / "runs.csv")), {})
    read = reading.frame[[reading.columns[name] for name in ("n", "d", "loss")]].to_numpy(float)
    assert read == pytest.approx(frame[["N", "D", "loss"]].to_numpy(), rel=5e-4)


@pytest.mark.parametrize(
    ("text", "value"),
    [("50M", 5e7), ("1.5 billion", 1.5e9), ("5 x 10^7", 5e7), ("2^20", 2.0**20), ("1_000", 1e3), ("auto", None)],
)
def test_a_cell_is_a_number_or_none(text: str, value: float | None) -> None:
    assert to_number(text) == value


@pytest.mark.parametrize("name", ["runs.csv", "runs.TSV", "runs.csv.gz", "runs.json", "runs.jsonl", "runs.parquet"])
def test_every_kind_of_file_gives_the_same_table(tmp_path: Path, name: str) -> None:
    frame = grid()
    path, lower = tmp_path / name, name.lower()
    text = frame.to_csv(index=False, sep="\t" if "tsv" in lower else ",")
    if "json" in lower:
        text = frame.to_json(orient="records", lines=lower.endswith("l"))
    if "parquet" in lower:
        frame.to_parquet(path)
    else:
        path.write_bytes(gzip.compress(text.encode()) if lower.endswith(".gz") else text.encode())
    pd.testing.assert_frame_equal(
        read_file(str(path)).reset_index(drop=True), frame, check_dtype=False, check_names=False
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1"])
def test_the_encoding_does_not_matter(tmp_path: Path, encoding: str) -> None:
    text = grid().assign(note="größer").to_csv(index=False)
    (tmp_path / "runs.csv").write_bytes(text.encode(encoding))
    frame = read_file(str(tmp_path / "runs.csv"))
    assert list(frame) == ["N", "D", "C", "loss", "note"]
    assert set(frame["note"]) == {"größer"}


def test_comments_are_left_out_and_errors_name_the_line_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("# exported today\n\nparams,loss\n1e6,\n2e6,\n# a word\n3e6,3.2\noops,3.1\n5e6,3.0\n")
    with pytest.raises(FitError, match="the first is 'oops' in line 8"):
        analyse(str(path), str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no rows"),
        ("n,d,loss\n", "holds no rows"),
        ("1e6,1e7,3.2\n2e6,1e7,3.1\n", "numbers where the columns' names belong"),
        ("params,loss\n50,000,000,3.2\n", "line 2 has 4 cells and the header 2"),
        ("PK\x03\x04 and more", "an Excel workbook"),
    ],
)
def test_what_is_no_table_is_refused_in_words(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "runs.csv").write_text(text)
    with pytest.raises(ResultsError, match=said):
        find_laws(str(tmp_path / "runs.csv"))


def test_a_table_without_a_known_size_is_told_its_columns(tmp_path: Path) -> None:
    frame = grid().rename(columns={"N": "alpha", "D": "beta"}).drop(columns="C")
    with pytest.raises(
        FitError, match=r"no column of sizes is known; the columns are alpha, beta, loss: .*--columns n="
    ):
        analyse(str(save(tmp_path, frame)), str(tmp_path / "out"))


def save(folder: Path, frame: pd.DataFrame) -> Path:
    frame.to_csv(folder / "runs.csv", index=False)
    return folder / "runs.csv"


def with_rates(header: str, rates: tuple[float, ...] = (1e-3, 2e-3, 4e-3, 8e-3, 16e-3)) -> pd.DataFrame:
    """Each size under several values of a setting, the middle one the best."""
    middle = rates[len(rates) // 2]
    return pd.concat(
        [
            (f := grid(4)).assign(**{header: rate, "loss": f["loss"] * (1 + 0.05 * np.log(rate / middle) ** 2)})
            for rate in rates
        ]
    )


@pytest.mark.parametrize("header", ["lr", "learning_rate", "Peak LR", "optimizer.learning_rate", "bs", "batch", "wd"])
def test_a_setting_keeps_runs_apart_whatever_its_header(tmp_path: Path, header: str) -> None:
    done = laws_of(tmp_path, with_rates(header, (1e-3, 2e-3, 4e-3)).drop(columns="C"))
    assert sum(found.law.name == "chinchilla" for found in done.fits) == 3
    assert all(found.record.points == 16 for found in done.fits if found.law.name == "chinchilla")


@pytest.mark.parametrize(("header", "law_name"), [("peak", "lr"), ("sequences", "batch")])
def test_what_a_message_advises_is_taken(tmp_path: Path, header: str, law_name: str) -> None:
    name = {"lr": "lr", "batch": "batch_tokens"}[law_name]
    frame = with_rates(header, (32, 64, 128, 256, 512))
    with pytest.raises(FitError, match=f"no column {name} for '{name}'; .* name it with --columns {name}=COLUMN"):
        analyse(str(save(tmp_path, frame)), str(tmp_path / "out"), law=law_name)
    (found,) = laws_of(tmp_path, frame, law=law_name, columns={name: header}).fits
    assert found.law.name == law_name


@pytest.mark.parametrize("headers", [("lr", "bs", "smooth loss"), ("learning_rate", "batch_size", "loss"),
                                     ("Peak LR", "batch_tokens", "val_loss")])  # fmt: skip
def test_a_table_of_rates_and_batches_gives_the_law_of_the_best_ones_and_no_other(
    tmp_path: Path, headers: tuple[str, str, str]
) -> None:
    rng, steps, rows = np.random.default_rng(0), np.log(2) * np.arange(-2, 3), []
    for n in (6e7, 2e8, 1e9):
        for d in (2e9, 1e10, 1e11):
            lr, batch = (axis.ravel() + rng.uniform(-0.3, 0.3) for axis in np.meshgrid(steps, steps))
            excess = 0.012 * lr**2 + 0.008 * batch**2 - 0.006 * lr * batch + 1e-3 * rng.standard_normal(25)
            best = 1.79 * n**-0.713 * d**0.307, 0.58 * d**0.571
            values = best[0] * np.exp(lr), best[1] * np.exp(batch), law(n, d) * np.exp(excess)
            rows.append(pd.DataFrame({"N": n, "D": d, **dict(zip(headers, values, strict=True))}))
    (found,) = laws_of(tmp_path, pd.concat(rows), name="steps.csv").fits
    assert found.law.name == "settings"
    exponents = {name: found.params[name] for name in ("p", "q", "p_B", "q_B")}
    assert exponents == pytest.approx({"p": -0.713, "q": 0.307, "p_B": 0.0, "q_B": 0.571}, abs=0.05)


@pytest.mark.parametrize("name", ["arm", "run", "seed"])
def test_labels_can_be_named(tmp_path: Path, name: str) -> None:
    done = laws_of(tmp_path, grid().assign(mine=np.arange(36) % 2), columns={name: "mine"})
    assert len(done.fits) == (2 if name == "arm" else 1)
    assert f"{name} = mine" in done.reading[0]


@pytest.mark.parametrize("header", ["dataset", "Task", "corpus", "data", "model_family"])
def test_two_tasks_in_one_file_are_not_pooled(tmp_path: Path, header: str) -> None:
    frame = pd.concat(
        [grid().assign(**{header: "c4"}), (f := grid()).assign(**{header: "pile", "loss": 0.7 * f["loss"]})]
    )
    done = laws_of(tmp_path, frame)
    assert [found.record.points for found in done.fits if found.law.name == "chinchilla"] == [36, 36]
    assert f"kept apart: {header}" in done.reading[0]


def test_a_column_that_separates_runs_of_equal_sizes_is_asked_for(tmp_path: Path) -> None:
    frame = pd.concat(
        [grid().assign(made_by=name, loss=grid()["loss"] * factor) for name, factor in (("a", 1), ("b", 1.2))]
    )
    path = str(save(tmp_path, frame.assign(note="x")))
    with pytest.raises(FitError, match=r"made_by would separate them: .* --columns arm=made_by"):
        analyse(path, str(tmp_path / "out"))
    assert [found.record.points for found in find_laws(path, columns={"arm": "made_by"}).fits] == [36, 36]
    assert find_laws(path, pool=True).fits[0].record.points == 72


def test_a_column_that_goes_with_what_the_law_leaves_over_is_named(tmp_path: Path) -> None:
    frame = grid()
    half = np.arange(36) % 2
    (found,) = laws_of(
        tmp_path, frame.assign(lab=np.array(["x", "y"])[half], loss=frame["loss"] * (1 + 0.05 * half))
    ).fits
    assert any("goes with lab" in note for note in found.warnings)


def test_rows_that_name_no_arm_are_an_arm_and_are_counted(tmp_path: Path) -> None:
    done = laws_of(tmp_path, grid().assign(arm=np.where(np.arange(36) % 2, "muon", "")))
    assert [(found.origin.title, found.record.points) for found in done.fits] == [("runs-base", 18), ("runs-muon", 18)]
    assert "blank cells, which count as a value of their own: arm (18 rows)" in done.reading
    assert laws_of(tmp_path, grid().assign(arm="")).fits[0].record.points == 36


def test_every_column_is_used_or_said_not_to_be(tmp_path: Path) -> None:
    done = laws_of(tmp_path, grid().assign(note="x", gpu=8, train_loss=1.0))
    assert done.reading[0].endswith("not used: note, gpu, train_loss")


@pytest.mark.parametrize("name", ["t", "u", "width", "depth"])
def test_a_variable_that_was_named_is_used_or_said_not_to_be(tmp_path: Path, name: str) -> None:
    frame = grid().assign(mine=1e15)
    said = f"named and not used by chinchilla: {name} = mine"
    assert said in laws_of(tmp_path, frame, columns={name: "mine"}).reading
    assert said in fit_frame(frame, columns={name: "mine"}).warnings
    assert not any("named and" in note for note in laws_of(tmp_path, frame, columns={"n": "N", "d": "D"}).reading)


def test_a_named_context_that_keeps_curves_apart_or_says_the_slice_is_used(tmp_path: Path) -> None:
    both = pd.concat([grid().assign(mine=length) for length in (128, 256)])
    done = laws_of(tmp_path, both, columns={"t": "mine"})
    assert len(done.fits) == 2
    assert not any("named and" in note for note in done.reading)
    frame = grid().query("D == D.min()").rename(columns={"D": "mine"})
    done = laws_of(tmp_path, frame, columns={"d": "mine"})
    assert "at fixed tokens" in done.fits[0].record.slice
    assert not any("named and" in note for note in done.reading)


def test_copies_of_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    done = laws_of(tmp_path, pd.concat([grid(), grid().head(10)]))
    assert done.fits[0].record.points == 36
    assert done.fits[0].origin.dropped == {"exact copy of another row": 10}


@pytest.mark.parametrize("word", ["auto", "", "0"])
@pytest.mark.parametrize(("law_name", "header"), [("lr", "lr"), ("isoflop", "C"), ("envelope", "C"), ("power-n", "N")])
def test_a_word_in_a_column_is_refused_by_every_law(tmp_path: Path, word: str, law_name: str, header: str) -> None:
    frame = (with_rates("lr") if law_name == "lr" else grid()).astype(object)
    frame.iloc[3, list(frame).index(header)] = word
    with pytest.raises(FitError, match=r"1 of \d+ values are not positive numbers, the first is .* in line 5"):
        analyse(str(save(tmp_path, frame)), str(tmp_path / "out"), law=law_name)


def test_a_perplexity_is_read_as_its_logarithm_and_losses_beyond_chance_are_refused(tmp_path: Path) -> None:
    frame = grid().rename(columns={"loss": "val_ppl"})
    done = laws_of(tmp_path, frame.assign(val_ppl=np.exp(frame["val_ppl"])))
    assert is_the_law(done.fits[0])
    assert "val_ppl is a perplexity" in done.reading[1]
    with pytest.raises(FitError, match="a perplexity"):
        laws_of(tmp_path, grid().assign(loss=100 * grid()["loss"]))


def test_the_reading_is_printed_and_stays_out_of_json(tmp_path: Path) -> None:
    path = save(tmp_path, grid().drop(columns="C"))
    out = ("--results", str(tmp_path / "out"), "--bootstrap", "100")
    assert "read: n = N, d = D, loss = loss; c is not given" in invoke("fit", str(path), *out).stdout
    assert pd.read_json(io.StringIO(invoke("fit", str(path), *out, "--json").stdout)).shape[0] == 1


def test_settings_that_go_together_are_named_once(tmp_path: Path) -> None:
    frame = grid(4).drop(columns="C")
    settings = ("norm", "activation", "schedule", "optimizer", "precision", "positions")
    both = pd.concat([frame.assign(**dict.fromkeys(settings, value)) for value in "ab"])
    titles = [found.origin.title for found in laws_of(tmp_path, both).fits]
    assert len(titles) == 2
    assert all(title.count("=") == 1 for title in titles)


def test_the_fits_of_a_file_can_be_drawn_from_the_folder_and_from_the_file(tmp_path: Path) -> None:
    n, c = np.tile(np.geomspace(1e7, 1e9, 7), 4), np.repeat(np.geomspace(1e18, 1e20, 4), 7)
    n = n * (c / 1e19) ** 0.5
    path = save(tmp_path, pd.DataFrame({"size_of_model": n, "budget": c, "loss": law(n, c / (6 * n))}))
    columns, out = ("--columns", "n=size_of_model"), str(tmp_path / "out")
    assert invoke("fit", str(path), *columns, "--results", out).exit_code == 0
    drawn = ("--figure", "curves", "--out", str(tmp_path / "curves.svg"))
    for command in ((out, "--fit", "runs-isoflop"), (str(path), *columns, "--law", "isoflop")):
        assert "curves.svg: runs-isoflop, fitted now" in invoke("plot", *command, *drawn).stdout
    with pytest.raises(FitError, match="no fit nope to draw; there are runs-isoflop, runs-chinchilla"):
        invoke("plot", out, "--fit", "nope", *drawn)


def test_points_of_one_run_are_no_new_evidence_however_few_the_runs(tmp_path: Path) -> None:
    """Twelve runs of six points each, which share 1 % of luck: as if they were 72 runs, intervals are too short."""
    rng, n = np.random.default_rng(0), np.repeat(np.geomspace(5e7, 5e9, 6), 2)
    luck = np.repeat(np.exp(0.01 * rng.standard_normal(12)), 6) * np.exp(0.002 * rng.standard_normal(72))
    n, d = np.repeat(n, 6), (n[:, None] * np.geomspace(5, 100, 6)).ravel()
    frame = pd.DataFrame({"n": n, "d": d, "loss": law(n, d) * luck, "run id": np.repeat(np.arange(12), 6)})
    widths = [
        np.ptp(laws_of(tmp_path, each, draws=100).fits[0].interval("alpha"))
        for each in (frame, frame.drop(columns="run id"))
    ]
    assert widths[0] > 1.5 * widths[1]
