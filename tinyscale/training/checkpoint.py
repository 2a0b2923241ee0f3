"""A trial's state as the content of a file, and back.

The file is what `torch.save` writes, a zip archive, with the SHA-256 of it as the archive's comment. Of one without a
comment the checksums of its entries are verified, which `torch.load` does not do.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
import zipfile
from typing import Any

import torch

_LENGTH, _DIGEST = 2, 32  # bytes of a comment's length, and of a SHA-256


class DamagedError(Exception):
    """A file is no checkpoint, or not the one that was written."""


def to_bytes(state: dict[str, Any]) -> bytes:
    """The state as a file holds it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    return content[:-_LENGTH] + _comment_length(_DIGEST) + hashlib.sha256(content).digest()


def of_bytes(content: bytes, device: torch.device | str = "cpu") -> dict[str, Any]:
    """What `to_bytes` was given, its tensors on the device. DamagedError where a bit differs; no code in it is run."""
    try:
        _verify(content)
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    except (
        zipfile.BadZipFile,
        struct.error,
        pickle.UnpicklingError,
        ValueError,
        EOFError,
        OSError,
        LookupError,
        AttributeError,
        TypeError,
        RuntimeError,
    ) as error:
        raise DamagedError(str(error).splitlines()[0] if str(error) else type(error).__name__) from error
    return state


def _verify(content: bytes) -> None:
    """DamagedError, or one of zipfile's, unless the file holds what its digest or checksums say."""
    sealed = len(content) - _DIGEST
    if content[sealed - _LENGTH : sealed] == _comment_length(_DIGEST):
        if hashlib.sha256(content[: sealed - _LENGTH] + _comment_length(0)).digest() != content[sealed:]:
            raise DamagedError("its SHA-256 is not the one that was written")
        return
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if any(entry.compress_type or entry.external_attr for entry in archive.infolist()):
            raise DamagedError("its entries are not as torch writes them")
        if (damaged := archive.testzip()) is not None:
            raise DamagedError(f"the checksum of {damaged} is not the one that was written")


def _comment_length(length: int) -> bytes:
    """How long the comment is, as the end of an archive says before it."""
    return length.to_bytes(_LENGTH, "little")
