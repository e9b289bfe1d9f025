"""The bug artifact, five files, as a value: read, write, hash. Whether it holds a bug is left to `validator`.

Invariant: an Artifact holds five texts within their size limits, and its `test_files` are distinct. Script,
parser and names are UTF-8. A diff may carry any bytes but NUL (see `source.diffs`), as source may.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from selfplay.errors import ArtifactError, PatchError, UsageError
from selfplay.source.diffs import MAX_PATH_BYTES, diff_bytes, diff_text

FILE_NAMES = ("bug_inject.diff", "test_weaken.diff", "test_files.txt", "test_script.sh", "test_parser.py")
ALIASES = {
    "bug_patch.diff": "bug_inject.diff",
    "test_patch.diff": "test_weaken.diff",
    "parse_test_output.py": "test_parser.py",
}
MAX_FILE_BYTES = 1 << 20  # the diffs have a lower limit of their own
MAX_TEST_FILES = 1000


@dataclass(frozen=True)
class Artifact:
    bug_inject: str
    test_weaken: str
    test_files: tuple[str, ...]
    test_script: str
    test_parser: str

    @classmethod
    def from_files(cls, files: Mapping[str, str]) -> Artifact:
        """Read an artifact from file name -> text. ALIASES are accepted, other names are ignored.

        Raises ArtifactError, which names each missing file.
        """
        named: dict[str, str] = {}
        for name, text in files.items():
            known = ALIASES.get(name, name)
            if known not in FILE_NAMES:
                continue
            if known in named:
                raise ArtifactError(
                    f"the artifact has {known} twice, once under another name ({name!r}); keep one"
                )
            named[known] = text
        missing = [name for name in FILE_NAMES if name not in named]
        if missing:
            raise ArtifactError(f"the artifact lacks {', '.join(missing)}; it has {_names(files)}")
        for name, text in named.items():
            _check_text(name, text)
        for name in ("test_script.sh", "test_parser.py"):
            if not named[name].strip():
                raise ArtifactError(f"{name} is empty")
        return cls(
            named["bug_inject.diff"],
            named["test_weaken.diff"],
            _read_test_files(named["test_files.txt"]),
            named["test_script.sh"],
            named["test_parser.py"],
        )

    @classmethod
    def read(cls, folder: Path) -> Artifact:
        """Read an artifact from a folder. Symbolic links are not followed.

        Raises ArtifactError for a bad or missing file, UsageError if there is no folder.
        """
        if not folder.is_dir():
            raise UsageError(
                f"{folder} is not a folder; an artifact is a folder with {', '.join(FILE_NAMES)}"
            )
        files: dict[str, str] = {}
        for name in (*FILE_NAMES, *ALIASES):
            path = folder / name
            if path.is_symlink() or not path.is_file():
                continue
            if path.stat().st_size > MAX_FILE_BYTES:
                raise ArtifactError(
                    f"{path} has {path.stat().st_size} bytes; at most {MAX_FILE_BYTES} are read"
                )
            try:
                files[name] = decode_file(name, path.read_bytes())
            except (OSError, UnicodeDecodeError) as error:
                raise ArtifactError(f"cannot read {path}: {error}") from error
        return cls.from_files(files)

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in self.to_files().items():
            (folder / name).write_bytes(diff_bytes(text))

    def to_files(self) -> dict[str, str]:
        test_files = "".join(f"{path}\n" for path in self.test_files)
        return dict(
            zip(
                FILE_NAMES,
                (self.bug_inject, self.test_weaken, test_files, self.test_script, self.test_parser),
                strict=True,
            )
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the five files."""
        sha = hashlib.sha256()
        for name, text in self.to_files().items():
            data = diff_bytes(text)
            sha.update(f"{name}\0{len(data)}\0".encode())
            sha.update(data)
        return sha.hexdigest()


def decode_file(name: str, data: bytes) -> str:
    """The text of the artifact's file `name`. Raises UnicodeDecodeError, never for a diff."""
    return diff_text(data) if ALIASES.get(name, name).endswith(".diff") else data.decode("utf-8")


def _names(files: Mapping[str, str]) -> str:
    return ", ".join(ascii(name[:40]) for name in sorted(files)[:10]) or "no file"


def _check_text(name: str, text: str) -> None:
    try:
        size = len(diff_bytes(text) if name.endswith(".diff") else text.encode("utf-8"))
    except (PatchError, UnicodeEncodeError) as error:
        raise ArtifactError(f"{name} is not UTF-8 text") from error
    if size > MAX_FILE_BYTES:
        raise ArtifactError(f"{name} has {size} bytes; at most {MAX_FILE_BYTES} are read")
    if "\0" in text:
        raise ArtifactError(f"{name} holds NUL bytes")


def _read_test_files(text: str) -> tuple[str, ...]:
    # Only \n ends a line: a file's name may hold a form feed.
    paths = [re.sub(r"^(\./[ \t]*)+", "", line.strip(" \t\r")) for line in text.split("\n")]
    distinct = tuple(dict.fromkeys(path for path in paths if path))
    if len(distinct) > MAX_TEST_FILES:
        raise ArtifactError(f"test_files.txt names {len(distinct)} files; at most {MAX_TEST_FILES} are read")
    longest = max((len(path.encode()) for path in distinct), default=0)
    if longest > MAX_PATH_BYTES:
        raise ArtifactError(
            f"test_files.txt names a file in {longest} bytes; at most {MAX_PATH_BYTES} are read"
        )
    return distinct
