"""A trained trial used: sampled from, scored on other text, exported to the transformers library."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.text import words
from helpers.trials import make_trial, trial_config
from tinyscale.cli import cli
from tinyscale.errors import ResultsError
from tinyscale.formatting import printable
from tinyscale.inference.export import export
from tinyscale.inference.trained import Trained, load_trained, sample, score
from tinyscale.results.schema import point_columns
from tinyscale.results.store import Results
from tinyscale.results.usage import read_usage
from tinyscale.spec.data_config import SOURCES, DataConfig
from tinyscale.training.loop import train

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the transformers library's own making
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

LLAMA = {"positions": "rotary", "norm": "rmsnorm", "activation": "swiglu"}
Make = Callable[..., tuple[Results, str]]


@pytest.fixture
def finished(tmp_path: Path, tiny_corpus: DataConfig) -> Make:
    """A function that trains a trial into a results folder."""

    def make(data: DataConfig = tiny_corpus, keep_every: int | None = None, **changes: Any) -> tuple[Results, str]:
        trial, corpus = make_trial(trial_config(data, **changes))
        results = Results(str(tmp_path / "results"))
        checkpoints = results.checkpoints(trial.identity)
        outcome = train(trial, corpus, lambda _: None, checkpoints=checkpoints, keep_every=keep_every)
        rows = [point_columns(trial, vars(point), corpus.val_tokens, corpus.val_bytes) for point in outcome.points]
        results.write_trial(trial, rows, outcome.state, None, {})
        return results, trial.identity

    return make


def test_the_beginning_of_an_identity_names_a_trial_and_nothing_else_does(finished: Make) -> None:
    results, identity = finished()
    assert load_trained(results, identity[:4]).identity == identity
    with pytest.raises(ResultsError, match=r"no trial begins with 'zz' .*; tinyscale ls .* lists them"):
        load_trained(results, "zz")
    finished(seed=1)
    with pytest.raises(ResultsError, match="2 trials begin with ''"):
        load_trained(results, "")


@pytest.mark.parametrize("damage", [lambda _: b"", lambda it: it[:-100], lambda it: it[:900] + b"\xff" + it[901:]])
def test_damaged_weights_are_an_error_and_never_another_model(finished: Make, damage: Callable[[bytes], bytes]) -> None:
    results, identity = finished()
    checkpoints = results.checkpoints(identity)
    checkpoints.write("weights.pt", damage(checkpoints.read("weights.pt")))
    with pytest.raises(ResultsError, match=r"weights\.pt: damaged.*launch its sweep again"):
        load_trained(results, identity)


def test_a_trial_without_weights_says_how_to_get_them(finished: Make) -> None:
    results, identity = finished()
    results.checkpoints(identity).delete("weights.pt")
    with pytest.raises(ResultsError, match=r"has no weights in .* without --keep none"):
        load_trained(results, identity)


def test_weights_kept_along_training_are_loaded_by_the_tokens_that_they_had_seen(finished: Make) -> None:
    results, identity = finished(keep_every=2000)
    assert results.kept_at(identity) == [2048, 4096]
    early, late, last = (load_trained(results, identity, at).gpt.state_dict() for at in (2000, 4096, 5120))
    final = load_trained(results, identity).gpt.state_dict()
    assert not torch.equal(early["head.weight"], late["head.weight"])
    assert torch.equal(last["head.weight"], final["head.weight"])
    with pytest.raises(ResultsError, match=r"no weights at 3,000 tokens, only at 2,048, 4,096; launch --keep-every"):
        load_trained(results, identity, 3000)
    said = CliRunner().invoke(cli, ["show", identity, "--results", results.location]).output
    assert "weights kept at 2.05K, 4.1K tokens" in said
    written = said.partition("sample (tinyscale sample makes others):\n")[2]
    text = sample(load_trained(results, identity), "", 80, temperature=0.8, top_k=None, seed=0)
    assert printable(text).split("\\n")[0] in written
    results.checkpoints(identity).delete("weights.pt")
    said = CliRunner().invoke(cli, ["show", identity, "--results", results.location]).output
    assert "no sample: there are no final weights (launch --keep none leaves none)" in said
    asked = ["sample", identity, "--at", "2K", "--tokens", "5", "--results", results.location]
    assert CliRunner().invoke(cli, asked).exit_code == 0
    assert read_usage(results).kinds["weights"] == sum(
        size for name, size in results.folder.sizes().items() if name.endswith(".pt")
    )


def test_a_sample_begins_with_the_prompt_and_repeats_with_its_seed(finished: Make) -> None:
    trained = load_trained(*finished())
    drawn = [sample(trained, "abc", 40, temperature=1.0, top_k=20, seed=seed) for seed in (0, 0, 1)]
    assert all(text.startswith("abc") and len(text) > 20 for text in drawn)
    assert drawn[0] == drawn[1] != drawn[2]
    likeliest = {sample(trained, "abc", 9, temperature=0, top_k=None, seed=seed) for seed in (0, 1)}
    assert len(likeliest) == 1


def test_scoring_the_validation_text_gives_the_trials_own_loss(
    finished: Make, tiny_corpus: DataConfig, tmp_path: Path
) -> None:
    results, identity = finished()
    trained, (_, corpus) = load_trained(results, identity), make_trial(trial_config(tiny_corpus))
    stream, numbers = corpus.val()
    folder = tmp_path / "held_out"
    folder.mkdir()
    for number in range(corpus.val_documents):
        text = corpus.tokenizer().decode(stream[numbers == number].tolist())
        (folder / f"{number}.txt").write_text(text)
    found, last = score(trained, str(folder)), results.read_trial(identity)[0][-1]
    assert (found["documents"], found["tokens"], found["bytes"]) == (
        corpus.val_documents,
        corpus.val_tokens,
        corpus.val_bytes,
    )
    for theirs, ours in (("loss", "val_loss"), ("loss_se", "val_loss_se"), ("bits_per_byte", "bits_per_byte")):
        assert found[theirs] == pytest.approx(last[ours], rel=1e-5), theirs
    assert found["perplexity"] == pytest.approx(math.exp(last["val_loss"]), rel=1e-5)


def test_bits_per_byte_by_hand(finished: Make, tmp_path: Path) -> None:
    trained = load_trained(*finished())
    (tmp_path / "other.txt").write_text("abcdé")
    found = score(trained, str(tmp_path / "other.txt"))
    tokens = torch.tensor([[trained.tokenizer.eot, *"abcdé".encode()]])
    ids = torch.tensor([trained.tokenizer.encode("abcdé")])
    logits = trained.gpt(torch.cat([tokens[:, :1], ids[:, :-1]], dim=1))[0]
    nats = F.cross_entropy(logits[0], ids[0], reduction="sum").item()
    assert (found["tokens"], found["bytes"]) == (6, 6)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / 6, rel=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"bias": True},
        {"tie_embeddings": True},
        LLAMA,
        {"positions": "rotary"},
        {"positions": "rotary", "bias": True},
        {"positions": "rotary", "tie_embeddings": True, "parametrization": "completep", "n_layers": 3},
        {**LLAMA, "bias": True},
        {**LLAMA, "tie_embeddings": True},
        {**LLAMA, "n_kv_heads": 1, "bias": True},
        {**LLAMA, "qk_norm": True},
        {**LLAMA, "qk_norm": True, "n_kv_heads": 1, "tie_embeddings": True},
        {"parametrization": "completep", "n_layers": 3, "bias": True},
        {**LLAMA, "parametrization": "completep", "n_layers": 3, "tie_embeddings": True},
    ],
    ids=[
        "gpt2",
        "gpt2 with biases",
        "gpt2 tied",
        "llama",
        "neox",
        "neox with biases",
        "neox under completep, tied",
        "llama with biases",
        "llama tied",
        "llama with shared heads",
        "qwen3",
        "qwen3 with shared heads",
        "gpt2 under completep",
        "llama under completep, tied",
    ],
)
def test_the_exported_model_gives_our_logits(finished: Make, tmp_path: Path, changes: dict[str, Any]) -> None:
    trained = load_trained(*finished(lr=3e-2, **changes))
    export(trained, tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 257, (3, 32)))
    with torch.no_grad():
        ours, exported = trained.gpt(tokens)[0], theirs(tokens).logits
    assert (ours - exported).abs().max() < 1e-4
    assert ours.std() > 0.1, "and they are not all alike"
    assert sum(p.numel() for p in theirs.parameters()) >= sum(p.numel() for p in trained.gpt.parameters())


@pytest.mark.parametrize("kind", ["byte", "char", "bpe"])
def test_the_exported_tokenizer_gives_our_ids_and_the_text_back(
    tmp_path: Path, tiny_corpus: DataConfig, finished: Make, kind: str
) -> None:
    tokenizer = {"kind": kind, **({"vocab_size": 300} if kind == "bpe" else {})}
    data = DataConfig.model_validate({**tiny_corpus.model_dump(exclude=set(SOURCES.values())), "tokenizer": tokenizer})
    results, identity = finished(data=data)
    trained = load_trained(results, identity)
    export(trained, tmp_path / "out")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = f"{words(50, seed=9)} and é 語\n twice  "
    assert theirs(text)["input_ids"] == trained.tokenizer.encode(text)
    assert theirs.decode(theirs(text)["input_ids"]) == text
    assert theirs.eos_token_id == trained.tokenizer.eot
    assert len(theirs) == trained.tokenizer.vocab_size


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"norm": "rmsnorm"}, "no model with learned positions, rmsnorm and gelu"),
        ({"n_kv_heads": 1}, "GPT-2 of transformers has neither qk_norm nor n_kv_heads"),
        ({"n_kv_heads": 1, "positions": "rotary"}, "GPT-NeoX of transformers has neither qk_norm nor n_kv_heads"),
        ({**LLAMA, "qk_norm": True, "bias": True}, "has no biases in its MLP"),
    ],
    ids=str,
)
def test_an_architecture_that_transformers_lacks_is_refused(
    finished: Make, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    trained: Trained = load_trained(*finished(**changes))
    with pytest.raises(ResultsError, match=said):
        export(trained, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_commands_print_what_they_found(finished: Make, tmp_path: Path) -> None:
    results, identity = finished()
    (tmp_path / "other.txt").write_text(words(100))
    at = ["--results", results.location]
    drawn = CliRunner().invoke(cli, ["sample", identity, "--prompt", "abc", "--tokens", "5", *at])
    assert drawn.output.startswith("abc")
    scored = CliRunner().invoke(cli, ["eval", identity, "--corpus", str(tmp_path / "other.txt"), "--json", *at])
    assert json.loads(scored.output)["trial"] == identity
    read = CliRunner().invoke(cli, ["eval", identity, "--corpus", str(tmp_path / "other.txt"), *at])
    assert "bits per byte" in read.output
    written = CliRunner().invoke(cli, ["export", identity, str(tmp_path / "out"), *at])
    assert "model.safetensors" in written.output
