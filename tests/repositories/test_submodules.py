"""Submodules and files in Git LFS, from folders and from a real git server over https."""

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from git_server import git_server, lfs_pointer_to
from selfplay.repositories.checkouts import Checkout
from selfplay.repositories.contents import Gathering
from selfplay.repositories.fetching import fetch
from selfplay.repositories.specs import parse_spec
from selfplay.repositories.submodules import submodule_sources, submodule_urls
from selfplay.source.trees import FileEntry

LARGE = b"large " * 1000
DIGEST = hashlib.sha256(LARGE).hexdigest()
NAME = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always")


def git(folder: Path, *words: str) -> None:
    subprocess.run(["git", *NAME, *words], cwd=folder, check=True, capture_output=True)


def repository(folder: Path, files: dict[str, bytes], submodules: dict[str, str]) -> Path:
    """A repository with one commit. submodules: path -> URL as .gitmodules names it."""
    folder.mkdir(parents=True)
    git(folder, "init", "-q", "-b", "main")
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    for path, url in submodules.items():
        git(folder, "submodule", "add", "-q", str((folder / url).resolve()), path)
        git(folder, "config", "--file", ".gitmodules", f"submodule.{path}.url", url)
    git(folder, "add", "-A", "-f")
    git(folder, "commit", "-qm", "one")
    return folder


@pytest.fixture
def repositories(tmp_path: Path) -> Path:
    """shop with the submodule inner, which has the submodule core and a file in Git LFS."""
    top = tmp_path / "repositories"
    repository(top / "core", {"c.py": b"c = 1\n"}, {})
    repository(top / "inner", {"i.py": b"i = 1\n", "large.bin": lfs_pointer_to(LARGE)}, {"deep": "../core"})
    repository(
        top / "shop", {"shop.py": b"s = 1\n", "data.bin": lfs_pointer_to(LARGE)}, {"libs/inner": "../inner"}
    )
    return top


EVERYTHING = {
    ".gitmodules",
    "shop.py",
    "data.bin",
    "libs/inner/.gitmodules",
    "libs/inner/i.py",
    "libs/inner/large.bin",
    "libs/inner/deep/c.py",
}


def checked(found: Checkout) -> None:
    assert set(found.tree) == EVERYTHING
    assert found.notes == ()
    assert found.tree["data.bin"].content == found.tree["libs/inner/large.bin"].content == LARGE


def test_a_local_repository_has_its_submodules_and_large_files(repositories: Path, tmp_path: Path) -> None:
    for name in ("shop", "inner"):
        store = repositories / name / ".git/lfs/objects" / DIGEST[:2] / DIGEST[2:4]
        store.mkdir(parents=True)
        (store / DIGEST).write_bytes(LARGE)
    checked(fetch(parse_spec(str(repositories / "shop")), tmp_path / "cache"))


def test_a_repository_of_a_server_has_its_submodules_and_large_files(
    repositories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with git_server(repositories, {DIGEST: LARGE}) as (url, certificate):
        monkeypatch.setenv("GIT_SSL_CAINFO", str(certificate))
        monkeypatch.setenv("no_proxy", "localhost")
        spec = parse_spec(f"{url}/shop")
        checked(fetch(spec, tmp_path / "cache"))
    shutil.rmtree(repositories)
    commit = fetch(spec, tmp_path / "cache").commit
    checked(fetch(parse_spec(f"{url}/shop@{commit}"), tmp_path / "cache"))  # needs no server


def test_a_large_file_that_is_not_the_promised_one_stays_a_pointer(
    repositories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with git_server(repositories, {DIGEST: LARGE.upper()}) as (url, certificate):
        monkeypatch.setenv("GIT_SSL_CAINFO", str(certificate))
        monkeypatch.setenv("no_proxy", "localhost")
        found = fetch(parse_spec(f"{url}/shop"), tmp_path / "cache")
    assert found.tree["data.bin"].content == lfs_pointer_to(LARGE)
    assert found.notes[0].endswith(", and was not fetched, are pointers: data.bin, libs/inner/large.bin")


def test_a_large_file_is_asked_for_without_the_users_password(
    repositories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine localhost login me password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    sent: list[str] = []
    with git_server(repositories, {DIGEST: LARGE}, credentials=sent) as (url, certificate):
        monkeypatch.setenv("GIT_SSL_CAINFO", str(certificate))
        monkeypatch.setenv("no_proxy", "localhost")
        checked(fetch(parse_spec(f"{url}/shop"), tmp_path / "cache"))
    assert sent == []


def test_an_endless_answer_about_large_files_is_given_up(
    repositories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with git_server(repositories, {DIGEST: LARGE}, padding=b" " * (2 << 20)) as (url, certificate):
        monkeypatch.setenv("GIT_SSL_CAINFO", str(certificate))
        monkeypatch.setenv("no_proxy", "localhost")
        found = fetch(parse_spec(f"{url}/shop"), tmp_path / "cache")
    assert found.tree["data.bin"].content == lfs_pointer_to(LARGE)


def test_a_submodule_that_cannot_be_fetched_is_named(repositories: Path, tmp_path: Path) -> None:
    shutil.rmtree(repositories / "shop/libs/inner")
    shutil.rmtree(repositories / "inner")
    found = fetch(parse_spec(str(repositories / "shop")), tmp_path / "cache")
    assert "shop.py" in found.tree
    assert any(
        note.startswith("left out submodules that") and note.endswith(": libs/inner") for note in found.notes
    )


@pytest.mark.parametrize(
    ("source", "url", "sources"),
    [
        ("https://host/a/shop", "../inner.git", ["https://host/a/inner.git"]),
        ("https://host/a/shop", "https://other/inner", ["https://other/inner"]),
        ("https://host/a/shop", "/etc", []),
        ("https://host/a/shop", "file:///etc", []),
        ("https://host/a/shop", "ssh://git@host/inner", []),
        ("https://host/a/shop", "ext::sh -c touch% x", []),
        ("https://host/a/shop", "../../../../x", []),
        ("ssh://git@host/a/shop", "../inner", ["ssh://git@host/a/inner"]),
        ("/nowhere/shop", "-u", []),
    ],
)
def test_a_repository_of_a_server_reaches_no_folder_and_no_program(
    source: str, url: str, sources: list[str]
) -> None:
    assert list(submodule_sources(source, source, "inner", url)) == sources


def test_gitmodules_includes_no_file_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "more").write_text('[submodule "x"]\n\tpath = x\n\turl = https://host/x\n')
    found = Gathering("x")
    text = f'[include]\n\tpath = {tmp_path}/more\n[submodule "a"]\n\tpath = a\n\turl = https://host/a\n'
    found.add_file(".gitmodules", FileEntry(text.encode()))
    assert submodule_urls(found) == {"a": "https://host/a"}
