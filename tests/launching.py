"""What the tests of launches share: a small text, a sweep over it, and the command line run as a program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from random import Random

SWEEP = """\
name: {name}
base:
  data: {{corpus: text.txt, tokenizer: {{kind: char}}, val_bytes: 101K}}
  model: {{d_model: 8, n_layers: 1, n_heads: 1, context_length: 32}}
  train: {{tokens_budget: {tokens}, batch_tokens: 512, lr: 1e-2, eval_points: 2}}
axes:
  model.d_model: {widths}
seeds: {seeds}
"""


def write_text(path: Path, words: int = 70_000) -> None:
    """A text of made-up words with some order in it, about 400 KB, in 200 documents."""
    random = Random(0)
    vocabulary = ["".join(random.choices("etaoinshr", k=random.randint(2, 7))) for _ in range(50)]
    documents = [" ".join(random.choices(vocabulary, k=words // 200)) for _ in range(200)]
    path.write_text("\n<|endoftext|>\n".join(documents))


def write_sweep(
    folder: Path, name: str = "small", tokens: str = "20K", widths: str = "[8, 16]", seeds: str = "[0]"
) -> Path:
    """A sweep file and its text in a folder."""
    if not (folder / "text.txt").exists():
        write_text(folder / "text.txt")
    path = folder / f"{name}.yaml"
    path.write_text(SWEEP.format(name=name, tokens=tokens, widths=widths, seeds=seeds))
    return path


def tinyscale(*arguments: str, cwd: Path, **options: object) -> subprocess.Popen[str]:
    """The command line as a program of its own, in its own process group, so that it can be interrupted."""
    program = [sys.executable, "-m", "tinyscale", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.Popen(program, cwd=cwd, env=environment, **pipes, **options)  # type: ignore[call-overload]
