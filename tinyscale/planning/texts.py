"""What a plan says of the texts: what is trained on, what is held out, and what the parts of a mixture share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tinyscale.data import TokenizedCorpus
from tinyscale.formatting import compact, plural
from tinyscale.spec.data_config import SEPARATOR, DataConfig

MUCH = 0.1  # share of lines in common above which transfer between two parts is mostly their being one text


def notes_of(texts: Mapping[DataConfig, TokenizedCorpus]) -> Iterator[str]:
    """A line for each text; of a mixture, the most lines and the fewest tokens that two parts have in common."""
    for data, text in texts.items():
        documents = f"{text.train_documents:,} documents" if text.train_documents > 1 else "one document"
        scored = f"validation: {data.val}," if data.val else "held out:"
        held_out = "the end of the text" if _holds_out_its_end(data, text) else plural(text.val_documents, "document")
        per_token = (text.train_bytes + text.val_bytes) / (text.facts.train_tokens + text.val_tokens)
        yield (
            f"text {named(data)}: {documents} with {compact(text.facts.train_tokens)} tokens to train on; {scored} "
            f"{held_out} with {compact(text.val_tokens)}; tokenizer {text.tokenizer_kind} of {text.facts.vocab_size}, "
            f"{per_token:.3g} bytes per token"
        )
        if text.in_common:
            lines = max(text.in_common, key=lambda pair: pair.lines)
            tokens = min(text.in_common, key=lambda pair: pair.tokens)
            yield (
                f"in common to two parts: at most {lines.lines:.1%} of their lines ({' and '.join(lines.parts)}), at "
                f"least {tokens.tokens:.1%} of their tokens ({' and '.join(tokens.parts)})"
            )


def warnings_of(texts: Mapping[DataConfig, TokenizedCorpus]) -> Iterator[str]:
    """A text that is one document, whose end need not be like the rest; parts with more than MUCH lines in common."""
    for data, text in texts.items():
        if text.trained_on:
            yield (
                f"{text.trained_on:,} of {text.val_documents:,} documents of {data.val} are also in the training text, "
                "so the loss on them says little of new text: remove them from one of the two"
            )
        if _holds_out_its_end(data, text):
            yield (
                f"{named(data)} is one document, so what is held out is its end, which need not be like the rest: put "
                f"{SEPARATOR} between its documents, name what stands there as data.separator "
                r'("\n\n": paragraphs), give a folder, .jsonl or .parquet, or give data.val'
            )
    alike = [pair for text in texts.values() for pair in text.in_common if pair.lines > MUCH]
    if alike:
        shared = ", ".join(f"{' and '.join(pair.parts)} {pair.lines:.0%}" for pair in alike)
        yield f"lines in common: {shared}; what is not translated counts as transfer between the parts: remove it"


def _holds_out_its_end(data: DataConfig, text: TokenizedCorpus) -> bool:
    return text.train_documents == 1 and text.entropy_rate is None and not text.parts and not data.val


def named(data: DataConfig) -> str:
    """The name of a text: its corpus, or its parts."""
    return " and ".join(name for name, _ in data.parts) if data.parts else str(data.corpus)
