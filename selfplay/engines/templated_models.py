"""A model with a chat template of one's own: a folder of the cache with links to the model's files.

Everything after that (engines, trainers, checkpoints, evaluations) sees an ordinary folder. Invariant: the
folder's name holds the hash of the template, so another template gets another folder.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from selfplay.errors import EngineError
from selfplay.repositories.checkouts import cache_root, new_folder

TEMPLATE = "chat_template.jinja"  # where transformers looks for a template first


def templated_folder(model: str, chat_template: str) -> str:
    """The folder of `model` with the template of the file `chat_template` in place of its own.

    model: a folder or id, as `policy_path` gives it. Raises EngineError.
    """
    template = read_template(chat_template)
    place = _local(model)
    files = [file for file in sorted(place.iterdir()) if file.is_file() and file.name != TEMPLATE]
    digest = hashlib.sha256(template)
    for file in files:
        state = file.stat()
        digest.update(f"\0{file.resolve()}\0{state.st_size}\0{state.st_mtime_ns}".encode())
    target = cache_root() / "models" / f"templated-{digest.hexdigest()[:16]}"
    if not target.is_dir():
        with new_folder(target) as folder:
            for file in files:
                (folder / file.name).symlink_to(file.resolve())
            (folder / TEMPLATE).write_bytes(template)
    return str(target)


def read_template(file: str) -> bytes:
    """The template of `policy.chat_template`. Raises EngineError."""
    try:
        content = Path(file).expanduser().read_bytes()
        text = content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EngineError(
            f"policy.chat_template = {file!r} cannot be read: {error}. Give a file with a Jinja template."
        ) from error
    if not text.strip():
        raise EngineError(f"policy.chat_template = {file!r} is empty. Give a file with a Jinja template.")
    return content


def _local(model: str) -> Path:
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model))
    except Exception as error:  # of the network, the hub or the disk
        raise EngineError(
            f"policy.chat_template needs the files of {model!r}, which cannot be fetched: {error}. "
            "Set policy.model to a model folder."
        ) from error
