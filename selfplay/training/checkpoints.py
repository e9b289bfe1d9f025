"""Checkpoint folders, written completely or not at all, with the companion files beside the weights.

It knows no trainer's own state. Invariant: a folder with its final name is complete and on the disk.
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
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill. At the end of the block it is synced and renamed to `folder`.

    If the block fails, the temporary folder is removed. Raises RunError if `folder` exists, OSError if it
    cannot be written. A TrainerError passes unchanged.
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
    except Exception as error:  # safetensors and torch have their own exceptions for a full disk
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, TrainerError):
            raise
        raise OSError(f"the checkpoint {folder} could not be written: {error}") from error
    partial.rename(folder)
    sync(folder.parent)


def read_companions(source: Path) -> dict[str, bytes]:
    """Read the tokenizer, its chat template and the model card. Returns file name -> content.

    A trainer reads them once, when it opens: otherwise checkpoints would lose their tokenizer if the folder
    were moved or unmounted during training.
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
    """Write companion files into a checkpoint. Existing files do not change."""
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
    """Return the SHA-256 of all weight files of a folder.

    It detects state and weights of different updates.
    """
    digest = hashlib.sha256()
    for path in [*sorted(folder.glob("*.safetensors")), *sorted(folder.glob("adapter/*.safetensors"))]:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
