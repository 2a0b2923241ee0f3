"""Prompts with answers to choose from, and the hash of what a trial is scored on besides its own text."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tinyscale.data.corpora import open_source
from tinyscale.data.files import json_lines, json_text, valid_unicode
from tinyscale.errors import DataError
from tinyscale.spec.measurement import Score

EXAMPLE = '{"prompt": "The sky is", "choices": [" blue", " green"], "answer": 0}'


@dataclass(frozen=True)
class Prompt:
    """A prompt, its choices, and which of them is right. where: file and line; no part of what it is."""

    prompt: str
    choices: tuple[str, ...]
    answer: int
    where: str


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a .jsonl file. answer: the number of the right choice, from 0, or its text.

    DataError names the file, and the line that is not one.
    """
    if path.suffix.lower() != ".jsonl":
        raise DataError(f"{path}: prompts are read from .jsonl, one a line, such as {EXAMPLE}")
    try:
        prompts = [_prompt(row, where) for where, row in json_lines(path, EXAMPLE)]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}); make it readable, or name another file") from error
    if not prompts:
        raise DataError(f"{path}: the file has no prompts; add lines such as {EXAMPLE}")
    return prompts


def text_hash(asked: Score) -> str:
    """SHA-256, in hex, of the other text or the prompts: a part of the measurement's identity.

    DataError when they cannot be had.
    """
    if asked.text is not None:
        return open_source(asked.text, max_bytes=asked.max_bytes).hash()
    assert asked.prompts is not None, "a score has one of the two"
    rows = [{**asdict(prompt), "where": ""} for prompt in read_prompts(Path(asked.prompts).expanduser())]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def _prompt(row: dict[str, Any], where: str) -> Prompt:
    prompt, choices = json_text(row, "prompt", where, EXAMPLE), row.get("choices")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(it, str) and it for it in choices):
        raise DataError(f'{where}: "choices" must be two or more texts, none empty, as in {EXAMPLE}')
    choices = [valid_unicode(choice, "choices", where) for choice in choices]
    if len(set(choices)) < len(choices):
        raise DataError(f'{where}: two of its "choices" are the same; remove one')
    answer = row.get("answer")
    if isinstance(answer, str) and answer in choices:
        answer = choices.index(answer)
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise DataError(
            f'{where}: "answer" = {answer!r} must be a number from 0 to {len(choices) - 1}, or one of its choices'
        )
    return Prompt(prompt, tuple(choices), answer, where)
