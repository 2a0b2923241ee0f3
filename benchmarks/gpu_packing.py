"""Many small trials on one GPU: one after another, packed as processes on shares of it, or fused into one model.

    python benchmarks/gpu_packing.py [--device cpu] [--quick] [--widths 64 128] [--copies 4 16] [--code eager recorded]
        [--batch-tokens 4096] [--head-dim 32] [--vocab-size 2048] [--seconds 3] [--peak-tflops 989]

Prints one Markdown table: training tokens per second of all K trials together, the model FLOPs utilisation (the column
`flops` of the results, over the device's peak), and the gain over one after another in the same code: eager, recorded
as a CUDA graph, or compiled (on a GPU also recorded). Without `--copies` each width is trained alone. Needs neither Ray
nor the network. Compiling takes about a minute per row the first time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from tinyscale.data import TokenizedCorpus, prepare
from tinyscale.spec.config import TrialConfig
from tinyscale.spec.trial import Trial, resolve
from tinyscale.training.batched import Batched, start_runs
from tinyscale.training.loop import Run

# Dense bf16 with fp32 accumulation, TFLOP/s, from the vendor's data sheets; the first that the device's name holds.
PEAKS = {"H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "A10": 125, "4090": 165}
CODES = {"cuda": ["eager", "recorded", "compiled"], "cpu": ["eager", "compiled"]}
WARM_UP = 5  # updates: compiling, and the recording of CUDA graphs


@dataclass(frozen=True)
class Shape:
    """What is timed: K trials of a width, and how a process runs one."""

    text: str
    device: str
    d_model: int
    n_layers: int
    batch_tokens: int
    vocab_size: int
    seconds: float
    head_dim: int = 32
    code: str = "eager"
    share: float = 1.0  # of the GPU
    seed: int = 0

    def trial(self) -> tuple[Trial, TokenizedCorpus]:
        """One trial, and its text."""
        data = {"corpus": self.text, "tokenizer": {"kind": "bpe", "vocab_size": self.vocab_size}, "val_bytes": "400K"}
        model = {"d_model": self.d_model, "n_layers": self.n_layers, "head_dim": self.head_dim, "context_length": 256}
        train = {"tokens_budget": "1B", "batch_tokens": self.batch_tokens, "lr": 1e-3, "precision": "bf16"}
        resources = {"gpu": self.share if self.device == "cuda" else 0, "compile": self.code == "compiled"}
        parts = {"data": data, "model": {**model, "positions": "rotary"}, "train": {**train, "repeats": True}}
        config = TrialConfig.model_validate({**parts, "seed": self.seed, "resources": resources})
        corpus = prepare(config.data)
        return resolve(config, corpus.facts), corpus

    def run(self) -> Run:
        """One trial, about to begin."""
        return Run(*self.trial(), None)

    def rate(self, update: Callable[[], None]) -> float:
        """Tokens of one trial per second, updated again and again until the device has done it all."""
        self.wait()
        began, steps = time.perf_counter(), 0
        while time.perf_counter() - began < self.seconds:
            update()
            steps += 1
        self.wait()
        return steps * self.batch_tokens / (time.perf_counter() - began)

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def warmed_up(trained: Run | Batched, code: str) -> Callable[[], None]:
    """The update, after it has compiled and recorded what it compiles and records in this code."""
    for _ in range(WARM_UP):
        trained.update()
        if code == "eager" and hasattr(trained, "steps"):
            trained.steps.record = False  # before the first recording
    return trained.update


def alone(shape: Shape) -> float:
    """Tokens per second of trials one after another."""
    return shape.rate(warmed_up(shape.run(), shape.code))


def fused(shape: Shape, copies: int) -> float:
    """Tokens per second of trials trained as one batched model."""
    made = [replace(shape, seed=seed).trial() for seed in range(copies)]
    together = start_runs([trial for trial, _ in made], made[0][1], [None] * copies)
    return copies * shape.rate(warmed_up(Batched(together), shape.code))


def packed(shape: Shape, copies: int) -> float:
    """Tokens per second of trials side by side, each in a process of its own with its share of the GPU."""
    each = [replace(shape, share=1 / copies, seed=seed) for seed in range(copies)]
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "--worker", json.dumps(asdict(one))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for one in each
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n", "a worker ended early: see above"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    return sum(float(process.communicate()[0]) for process in processes)


def work(shape: Shape) -> None:
    """One of the packed processes: warm up, wait for the others, run, and print the rate."""
    update = warmed_up(shape.run(), shape.code)
    print("ready", flush=True)
    sys.stdin.readline()
    print(shape.rate(update), flush=True)


def peak_flops(device: str) -> tuple[float, str]:
    """FLOP/s to measure utilisation by, and where they come from."""
    if device == "cuda":
        for name, tera in PEAKS.items():
            if name in torch.cuda.get_device_name():
                return tera * 1e12, "the data sheet"
    size = 8192 if device == "cuda" else 1024
    square = torch.randn(size, size, dtype=torch.bfloat16, device=device)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        float((square @ square)[0, 0])  # waits for the product
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds), "a product of square bf16 matrices, measured"


def rows(shape: Shape, codes: list[str], counts: list[int]) -> Iterator[tuple[int, str, str, float, float]]:
    """K, the way, the code, tokens per second and the gain over one after another in the same code."""
    for code in codes:
        this = replace(shape, code=code)
        base = alone(this)
        yield 1, "alone", code, base, 1.0
        for copies, (way, measure) in itertools.product(counts, {"packed": packed, "fused": fused}.items()):
            rate = measure(this, copies)
            yield copies, way, code, rate, rate / base


def write_text(folder: Path) -> None:
    """Made words with the frequencies of real ones, 6 MB in 60 documents."""
    chance = random.Random(0)
    words = ["".join(chance.choices("etaoinshrdlu", k=chance.randint(2, 9))) for _ in range(5000)]
    weights = [1 / rank for rank in range(1, 5001)]
    for number in range(60):
        (folder / f"{number}.txt").write_text(" ".join(chance.choices(words, weights, k=16_000)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="one width, two trials, a fraction of a second each")
    parser.add_argument("--widths", type=int, nargs="+", help="values of d_model: 64, 128, 256, 512 if left out")
    parser.add_argument("--copies", type=int, nargs="*", help="K, trials at the same time: 4, 16 if left out")
    parser.add_argument("--code", nargs="+", choices=CODES["cuda"], help="ways to run a step; all if left out")
    parser.add_argument("--batch-tokens", type=int, default=4096, help="tokens of a step of each trial")
    parser.add_argument("--head-dim", type=int, default=32)
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--seconds", type=float, default=3.0, help="timed, for each row")
    parser.add_argument("--peak-tflops", type=float, help="of the device in bf16, where it is not known here")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(Shape(**json.loads(options.worker)))
        return
    peak, source = peak_flops(options.device)
    if options.peak_tflops:
        peak, source = options.peak_tflops * 1e12, "--peak-tflops"
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU, one thread a trial"
    quick = options.quick
    widths = options.widths or ([32] if quick else [64, 128, 256, 512])
    counts = options.copies if options.copies is not None else [2] if quick else [4, 16]
    layers, batch, vocab, seconds = (
        (1, 512, 512, 0.2) if quick else (4, options.batch_tokens, options.vocab_size, options.seconds)
    )
    print(f"{name}; PyTorch {torch.__version__}; peak {peak / 1e12:.4g} TFLOP/s ({source})")
    print(f"bf16, layers {layers}, context 256, {batch} tokens a step of each trial\n")
    print("| d_model | K | way | code | tokens/s | MFU % | gain |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        write_text(Path(folder))
        for width in widths:
            shape = Shape(folder, options.device, width, layers, batch, vocab, seconds, options.head_dim)
            per_token = shape.trial()[0].flops_per_token["flops"]
            for copies, way, code, rate, gain in rows(shape, options.code or CODES[options.device], counts):
                used = 100 * rate * per_token / peak
                print(f"| {width} | {copies} | {way} | {code} | {rate:,.0f} | {used:.3g} | {gain:.2f} |", flush=True)


if __name__ == "__main__":
    main()
