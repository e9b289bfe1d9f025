"""Reads files of task records and of predictions: JSONL, JSON lists, Parquet, Arrow, folders of a data set.

What a record means is left to `records`. Invariant: each record becomes the text of one JSON object, in the
order of the file, so that all formats meet the same checks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selfplay.errors import PrerequisiteError, UsageError
from selfplay.runtime.recipes import read_text

SUFFIXES = (".jsonl", ".json", ".parquet", ".arrow")
# Files that `datasets` writes beside the records.
NOT_RECORDS = (
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
    "evaluation.json",
)
HOW_TO_WRITE = "`selfplay inspect-bugs --tasks FILE` writes some."
NEEDS_UTF_8 = (
    "Task records are text in UTF-8 (iconv -f latin1 -t utf-8 FILE converts one), "
    f"or Parquet in a file with the suffix .parquet. {HOW_TO_WRITE}"
)
INSTALL_PYARROW = "pip install 'selfplay-swe[parquet]' (or: pip install pyarrow)"


def is_source(source: str) -> bool:
    """Whether `source` names a file or a folder of records, with a split of the folder if it names one."""
    return Path(source).exists() or Path(source.rpartition(":")[0] or ".nothing").is_dir()


def read_texts(source: str) -> tuple[str, list[str]]:
    """What one record is called in messages ("line" or "record"), and the records as JSON texts.

    source: a file, a folder, or FOLDER:SPLIT. An empty line of a JSONL file is an empty text, so that numbers
    are those of an editor. Raises UsageError that names the file and the remedy, and PrerequisiteError
    without pyarrow for Parquet and Arrow.
    """
    path, split = Path(source), ""
    if not path.exists() and ":" in source:
        path, split = Path(source.rpartition(":")[0]), source.rpartition(":")[2]
    if path.is_dir():
        return "record", [text for file in _files_of(path, split) for text in _read_file(file)[1] if text]
    return _read_file(path)


def _read_file(path: Path) -> tuple[str, list[str]]:
    if path.suffix in (".parquet", ".arrow"):
        return "record", [json.dumps(row, default=str) for row in _read_columns(path)]
    text = read_text(path, "the tasks", NEEDS_UTF_8)
    if text.lstrip()[:1] == "[":
        return "record", [json.dumps(record) for record in _json_list(text, path)]
    # Not splitlines: JSON texts may hold other line breaks unescaped.
    return "line", text.split("\n")


def _json_list(text: str, path: Path) -> list[Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} begins with '[' and is no JSON list: {error}. "
            "Write a list of objects, or one object on each line."
        ) from error
    return list(found)


# ---- folders


def _files_of(folder: Path, split: str) -> list[Path]:
    """The files of a data set in a folder: as `save_to_disk` writes them, or a snapshot of the hub's.

    Raises UsageError if there is none, or if there are several splits and none is chosen.
    """
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix in SUFFIXES
        and path.name not in NOT_RECORDS
        and not path.name.startswith("cache-")
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    splits: dict[str, list[Path]] = {}
    for path in found:
        splits.setdefault(_split_of(path, folder), []).append(path)
    known = ", ".join(sorted(splits))
    if split and split not in splits:
        raise UsageError(f"{folder} has no split {split!r}. It has: {known or 'no file of records'}.")
    if split:
        return splits[split]
    if not found:
        raise UsageError(
            f"{folder} holds no file of task records. Known are {', '.join(SUFFIXES)}; "
            "give a folder that `datasets` saved, a snapshot of a data set, or a file."
        )
    if len(splits) > 1:
        chosen = "test" if "test" in splits else sorted(splits)[0]
        raise UsageError(f"{folder} has the splits {known}. Name one, as in --tasks {folder}:{chosen}")
    return found


def _split_of(path: Path, folder: Path) -> str:
    """The split of a file.

    Shards are called test-00000-of-00002.parquet. `save_to_disk` puts data-00000-of-00001.arrow into a folder
    with the split's name.
    """
    first = path.stem.partition("-")[0]
    parent = path.parent.relative_to(folder).name
    return parent if first == "data" and parent else first


# ---- Parquet and Arrow


def _read_columns(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file or of an Arrow stream."""
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise PrerequisiteError(
            f"{path} needs pyarrow, which is not installed. Install it with: {INSTALL_PYARROW}. "
            "Or convert the file to JSONL."
        ) from error
    try:
        if path.suffix == ".parquet":
            yield from pyarrow.parquet.read_table(path).to_pylist()
            return
        with pyarrow.OSFile(str(path)) as file:
            try:
                table = pyarrow.ipc.open_stream(file).read_all()
            except pyarrow.ArrowInvalid:
                file.seek(0)
                table = pyarrow.ipc.open_file(file).read_all()
        yield from table.to_pylist()
    except pyarrow.ArrowException as error:
        raise UsageError(f"cannot read the tasks {path}: {error}. Is it whole?") from error
