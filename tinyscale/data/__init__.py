"""From text to tokens on disk, without torch."""

from tinyscale.data.corpora import documents
from tinyscale.data.split import MIN_VAL_TOKENS, SPLIT_RULE, content_hash
from tinyscale.data.tokenized import (
    TokenizedCorpus,
    prepare,
    require_common_tokens,
    require_enough_validation,
    require_whole_records,
)
from tinyscale.data.tokenizers import Tokenizer

__all__ = [
    "MIN_VAL_TOKENS",
    "SPLIT_RULE",
    "TokenizedCorpus",
    "Tokenizer",
    "content_hash",
    "documents",
    "prepare",
    "require_common_tokens",
    "require_enough_validation",
    "require_whole_records",
]
