"""The importance ratio of each trained token, kept for each update beside the run's episodes.

Invariant: a file is written whole or not at all.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path


def ratios_file(run: Path, update: int) -> Path:
    """Where the ratios of one update are. Runs of earlier versions have none."""
    return run / "ratios" / f"update-{update:05d}.npz"


def write_ratios(file: Path, ratios: Mapping[str, Sequence[float]]) -> None:
    """Keep the ratios of an update, in half precision. Raises OSError if they cannot be written.

    ratios: id of an episode -> the ratio of each of its tokens, NaN where it has none. One above 65,504, the
    largest number of that precision, is kept as that.
    """
    import numpy as np

    file.parent.mkdir(exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}.partial")
    with partial.open("wb") as opened:
        most = np.finfo(np.float16).max
        arrays = {name: np.minimum(values, most).astype(np.float16) for name, values in ratios.items()}
        np.savez_compressed(opened, allow_pickle=False, **arrays)
        opened.flush()
        os.fsync(opened.fileno())
    partial.rename(file)


def read_ratios(file: Path, episode_id: str) -> list[float | None]:
    """The ratio of each token of an episode, None where it has none. Empty if none are kept, or readable."""
    import numpy as np

    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as kept:
            values = kept[episode_id].astype(float).tolist() if episode_id in kept else []
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return []
    return [None if math.isnan(value) else value for value in values]
