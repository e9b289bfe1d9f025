"""Checkpoint folders, written whole or not at all, with what travels along beside the weights. Knows no trainer's own state.

Invariant: a folder with its final name is complete and on the disk.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from selfplay.errors import RunError, TrainerError

_NOT_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".msgpack", ".h5")
_STATE_OF_A_TRAINER = ("trainer.json",)


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A temporary folder to fill, synced and renamed to `folder` at the end of the block, removed when it fails.

    Raises RunError when `folder` exists, OSError when it cannot be written; a TrainerError passes as it is.
    """
    if folder.exists():
        raise RunError(f"the checkpoint {folder} exists already; checkpoints are written once.")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in [*partial.rglob("*"), partial]:
            sync(path)
    except Exception as error:  # safetensors and torch report a full disk in ways of their own
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, TrainerError):
            raise
        raise OSError(f"the checkpoint {folder} could not be written: {error}") from error
    partial.rename(folder)
    sync(folder.parent)


def read_companions(source: Path) -> dict[str, bytes]:
    """The tokenizer, its template and the model card, by name, which travel along with the weights.

    Read once, when a trainer opens: a folder that is moved or unmounted while it trains must not cost the checkpoints their tokenizer.
    """
    if not source.is_dir():
        return {}
    return {
        file.name: file.read_bytes()
        for file in sorted(source.iterdir())
        if file.is_file()
        and file.suffix not in _NOT_WEIGHTS
        and "index.json" not in file.name
        and file.name not in _STATE_OF_A_TRAINER
    }


def write_companions(companions: Mapping[str, bytes], folder: Path) -> None:
    """Beside the weights; what the model wrote itself stays."""
    for name, content in companions.items():
        if not (folder / name).exists():
            (folder / name).write_bytes(content)


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def weights_digest(folder: Path) -> str:
    """Of all weight files of a folder, so that state and weights of different updates are told apart."""
    digest = hashlib.sha256()
    for path in [*sorted(folder.glob("*.safetensors")), *sorted(folder.glob("adapter/*.safetensors"))]:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
