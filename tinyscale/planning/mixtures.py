"""What the parts of a mixture have in common: said of every plan, with a warning where text was not translated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tinyscale.data import TokenizedCorpus

MUCH = 0.1  # share of lines in common above which transfer between two parts is mostly their being one text


def notes_of(texts: Iterable[TokenizedCorpus]) -> Iterator[str]:
    """The largest share of lines and the smallest share of tokens that two parts have in common."""
    for text in texts:
        if text.in_common:
            lines = max(text.in_common, key=lambda pair: pair.lines)
            tokens = min(text.in_common, key=lambda pair: pair.tokens)
            yield (
                f"in common to two parts: at most {lines.lines:.1%} of their lines ({' and '.join(lines.parts)}), at "
                f"least {tokens.tokens:.1%} of their tokens ({' and '.join(tokens.parts)})"
            )


def warnings_of(texts: Iterable[TokenizedCorpus]) -> Iterator[str]:
    """Parts that have more than MUCH of their lines in common."""
    alike = [pair for text in texts for pair in text.in_common if pair.lines > MUCH]
    if alike:
        named = ", ".join(f"{' and '.join(pair.parts)} {pair.lines:.0%}" for pair in alike)
        yield f"lines in common: {named}; what is not translated counts as transfer between the parts: remove it"
