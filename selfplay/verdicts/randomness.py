"""The secret of a run, and every random draw of judging: hash seeds, changes without meaning, disguises.

All draws are derived from the secret and from what is judged. So a run repeats them, and code in a sandbox
cannot foresee them. Invariants: the secret is shown nowhere (no sandbox, log, error or JSON), and no draw
reveals another one.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import random
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from selfplay.errors import RunError

SECRET_BYTES = 32
SECRET_FILE = "judging.key"  # in the folder of a run and of an evaluation
HASH_SEEDS = (1, 2**32 - 1)  # every run of every phase has a seed in this range
NOISE_BITS = 128


@dataclass(frozen=True)
class Secret:
    """32 bytes. Its text form does not hold them."""

    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.key) != SECRET_BYTES:
            raise ValueError(f"a secret has {SECRET_BYTES} bytes, not {len(self.key)}")

    @classmethod
    def new(cls) -> Secret:
        return cls(secrets.token_bytes(SECRET_BYTES))

    @classmethod
    def of_folder(cls, folder: Path) -> Secret:
        """The secret in the folder, made if there is none. Only the user can read the file.

        Raises RunError for a damaged file, and one that cannot be read or written.
        """
        path = folder / SECRET_FILE
        try:
            if not path.exists():
                cls.new().write(folder)
            key = path.read_bytes()
            for left in folder.glob(f"{SECRET_FILE}.*.partial"):  # of a start that was killed
                left.unlink(missing_ok=True)
        except OSError as error:
            raise RunError(
                f"cannot read or write {path}: {error.strerror}. Give write access there."
            ) from error
        if len(key) != SECRET_BYTES:
            raise RunError(
                f"{path} has {len(key)} bytes instead of {SECRET_BYTES}. Remove it, and a new one is made."
            )
        return cls(key)

    def write(self, folder: Path) -> None:
        """Write the file whole or not at all. A file that is there stays."""
        partial = folder / f"{SECRET_FILE}.{secrets.token_hex(4)}.partial"
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(self.key)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(partial, folder / SECRET_FILE)  # two processes that start at once use one secret
        except (FileExistsError, FileNotFoundError):
            pass  # another start made the secret, and removed what looked left behind
        except OSError:  # a file system without hard links
            partial.rename(folder / SECRET_FILE)
        finally:
            partial.unlink(missing_ok=True)

    def generator(self, purpose: str, *parts: str) -> random.Random:
        """Random numbers for one purpose. Equal arguments give equal numbers."""
        return _KeyedRandom(self._derived(purpose, parts))

    def hash_seed(self, *parts: str) -> int:
        """A value of PYTHONHASHSEED. The code under test can read it."""
        return self.generator("hash seed", *parts).randint(*HASH_SEEDS)

    def noise_seed(self, *parts: str) -> int:
        """A seed for `perturbation.perturb`, too large to be found by trying."""
        return self.generator("noise", *parts).getrandbits(NOISE_BITS)

    def _derived(self, purpose: str, parts: Sequence[str]) -> bytes:
        texts = [part.encode("utf-8", "surrogatepass") for part in (purpose, *parts)]
        return hmac.digest(self.key, b"".join(b"%d:" % len(text) + text for text in texts), "sha256")


class _KeyedRandom(random.Random):
    """Random numbers from SHA-256 in counter mode.

    Code in a sandbox sees some of them, for instance in names. From those of Python's own generator it could
    compute all others.
    """

    def __new__(cls, key: bytes) -> _KeyedRandom:
        return super().__new__(cls)

    def __init__(self, key: bytes) -> None:
        self._key, self._counter = key, 0

    def getrandbits(self, k: int, /) -> int:
        data = b""
        while 8 * len(data) < k:
            data += hashlib.sha256(self._key + self._counter.to_bytes(8, "big")).digest()
            self._counter += 1
        return int.from_bytes(data, "big") >> (8 * len(data) - k)

    def random(self) -> float:
        return self.getrandbits(53) * 2.0**-53
