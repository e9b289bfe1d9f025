"""Repository lists and fetching, with git repositories, archives and a package index on this machine."""

import functools
import hashlib
import http.server
import io
import stat
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from selfplay.errors import RepositoryError, RepositoryListError, UsageError
from selfplay.repositories.archives import read_archive
from selfplay.repositories.checkouts import Checkout
from selfplay.repositories.fetching import fetch
from selfplay.repositories.history import History, history_of
from selfplay.repositories.licences import licence_of
from selfplay.repositories.package_index import pip_settings
from selfplay.repositories.specs import absolute_line, parse_spec, read_repository_list
from selfplay.source.trees import FileEntry, Tree

# ---- lists


def test_every_kind_of_line_is_read(tmp_path: Path) -> None:
    (tmp_path / "checkout").mkdir()
    (tmp_path / "list.txt").write_text(
        "# repositories\n"
        "https://host/owner/name@feature/x   # a branch\n"
        "git@host:owner/other.git\n"
        "./checkout@v1\n"
        'pypi:toolz==1.0.0 python=3.11 install="pip install \'numpy<3\'" test="pytest -k fast"\n'
        "pypi:Tool_Z==0.9.0..1.0.0\n"
        "docker:example/app:1.0#/testbed\n"
    )
    specs = read_repository_list(tmp_path / "list.txt")
    assert [(spec.kind, spec.name, spec.location, spec.rev) for spec in specs] == [
        ("git", "name-feature-x", "https://host/owner/name", "feature/x"),
        ("git", "other", "git@host:owner/other.git", None),
        ("path", "checkout-v1", str(tmp_path / "checkout"), "v1"),
        ("pypi", "toolz-1.0.0", "toolz", "1.0.0"),
        ("pypi", "tool-z-0.9.0..1.0.0", "tool-z", "0.9.0..1.0.0"),
        ("docker", "app-1.0", "example/app:1.0#/testbed", None),
    ]
    assert (specs[3].python, specs[3].install, specs[3].test) == (
        "3.11",
        "pip install 'numpy<3'",
        "pytest -k fast",
    )


def test_a_comment_begins_a_word_outside_quotes(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(
        'pypi:a==1 test="pytest -k \'not #3\' # all" # its "own" words\n'
        "pypi:b==2 # python=3.11\n\t# nothing\n",
        encoding="utf-8",
    )
    first, second = read_repository_list(tmp_path / "list.txt")
    assert first.test == "pytest -k 'not #3' # all"
    assert (second.name, second.python) == ("b-2", None)


def test_all_bad_lines_are_reported_at_once_with_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("pypi:toolz\n\npypi:a==1\nnonsense\npypi:b==2 color=red\npypi:a==1\n")
    with pytest.raises(RepositoryListError) as caught:
        read_repository_list(tmp_path / "list.txt")
    assert [number for number, _ in caught.value.problems] == [1, 4, 5, 6]
    assert "repository of line 3 again" in caught.value.problems[3][1]


def test_a_list_without_repositories_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# nothing\n")
    with pytest.raises(RepositoryListError, match="no repository in the list"):
        read_repository_list(tmp_path / "list.txt")


@pytest.mark.parametrize(
    "line",
    [
        "ext::sh -c id",
        "ext::sh",
        "http://host/owner/name",
        "git://host/owner/name",
        "ftp://host/x",
        "ssh://-oProxyCommand=id/x",
        "ssh://user@-oProxyCommand=id/x",
        "https:///owner/name",
        "https://host/owner/name@--upload-pack=id",
        "https://host/owner/name@a..b",
        "https://host/owner/name@",
        "pypi:toolz==1.0.0..0.9.0",
        "pypi:toolz==0.9..1.0..2.0",
        "pypi:toolz==*",
        "pypi:../x==1",
        "docker:image:tag",
        "docker:image:tag#testbed",
        "docker:--privileged#/testbed",
        "pypi:toolz==1 python=three",
        "pypi:toolz==1 test=",
        "pypi:toolz==1 test=a test=b",
        'pypi:toolz==1 test="unclosed',
        "",
    ],
)
def test_unusable_or_dangerous_lines_are_refused(line: str) -> None:
    with pytest.raises(UsageError):
        parse_spec(line)


# ---- git


def git(folder: Path, *arguments: str) -> str:
    identity = [
        "-c",
        "user.name=T",
        "-c",
        "user.email=t@localhost",
        "-c",
        "init.defaultBranch=main",
        "-c",
        "protocol.file.allow=always",
    ]
    done = subprocess.run(
        ["git", *identity, "-C", str(folder), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two commits on main, a tag on the first."""
    folder = tmp_path / "project"
    (folder / "pkg").mkdir(parents=True)
    (folder / "pkg/__init__.py").write_text("def f():\n    return 1\n")
    (folder / "LICENSE").write_text("Permission is hereby granted, free of charge, to any person\n")
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "one")
    git(folder, "tag", "v1")
    (folder / "pkg/__init__.py").write_text("def f():\n    return 2\n")
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "link").symlink_to("/etc/passwd")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "two")
    return folder


def test_a_local_repository_is_read_at_its_head(repository: Path, tmp_path: Path) -> None:
    found = fetch(parse_spec(str(repository)), tmp_path / "cache")
    assert found.commit == git(repository, "rev-parse", "HEAD")
    assert found.commits == 2
    assert found.licence == "MIT"
    assert set(found.tree) == {"LICENSE", "pkg/__init__.py", "run.sh"}
    assert found.tree["run.sh"].executable


def test_a_tag_a_branch_and_a_commit_are_found(repository: Path, tmp_path: Path) -> None:
    first = git(repository, "rev-parse", "v1")
    for rev in ("v1", first, first[:10]):
        found = fetch(parse_spec(f"{repository}@{rev}"), tmp_path / "cache")
        assert (found.commit, found.commits) == (first, 1)
    assert fetch(parse_spec(f"file://{repository}@main"), tmp_path / "cache").commits == 2


def test_an_unknown_revision_is_named(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="no branch, tag or commit 'v9'"):
        fetch(parse_spec(f"{repository}@v9"), tmp_path / "cache")


def test_a_fetched_repository_outlives_its_source(repository: Path, tmp_path: Path) -> None:
    spec = parse_spec(f"file://{repository}@v1")
    first = fetch(spec, tmp_path / "cache")
    repository.rename(tmp_path / "moved")
    again = fetch(spec, tmp_path / "cache")
    assert (again.commit, again.tree) == (first.commit, first.tree)


def test_a_repository_that_was_never_fetched_and_cannot_be_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="not in the cache"):
        fetch(parse_spec(f"file://{tmp_path}/nowhere"), tmp_path / "cache")


def test_export_rules_filters_and_hooks_of_a_repository_have_no_effect(
    repository: Path, tmp_path: Path
) -> None:
    (repository / ".gitattributes").write_text("pkg export-ignore\n*.sh filter=evil export-subst\n")
    marker = tmp_path / "ran"
    for name in ("post-checkout", "reference-transaction", "post-index-change"):
        hook = repository / ".git/hooks" / name
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(f"#!/bin/sh\ntouch {marker}\n")
    git(repository, "config", "filter.evil.smudge", f"touch {marker}")
    git(repository, "config", "core.fsmonitor", f"touch {marker}")
    git(repository, "config", "uploadpack.packObjectsHook", f"touch {marker}")
    git(repository, "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "add", ".gitattributes")
    git(repository, "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "commit", "-qm", "rules")
    for name in ("post-checkout", "reference-transaction", "post-index-change"):
        (repository / ".git/hooks" / name).chmod(0o755)
    found = fetch(parse_spec(str(repository)), tmp_path / "cache")
    assert "pkg/__init__.py" in found.tree
    assert not marker.exists()


def test_the_users_git_configuration_cannot_redirect_a_local_fetch(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/.gitconfig").write_text(f'[url "file:///nowhere"]\n\tinsteadOf = {repository}\n')
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_DIR", "/nowhere/at/all")
    assert fetch(parse_spec(str(repository)), tmp_path / "cache").commits == 2


def test_a_history_holds_the_ancestry_and_nothing_later(repository: Path, tmp_path: Path) -> None:
    assert history_of(fetch(parse_spec(f"{repository}@v1"), tmp_path / "cache")) is None
    git(repository, "tag", "v2")
    git(repository, "commit", "-q", "--allow-empty", "-m", "three")
    later = history_of(fetch(parse_spec(f"{repository}@v2"), tmp_path / "cache"))
    assert later is not None
    assert history_subjects(later, tmp_path / "later") == ["one", "two"]


def history_subjects(history: History, folder: Path) -> list[str]:
    """The commits that a repository has with these packs alone, oldest first."""
    git(folder.parent, "init", "-q", "--bare", folder.name)
    for name, content in history.packs():
        (folder / "objects/pack" / name).write_bytes(content)
    git(folder, "update-ref", "refs/heads/main", history.commit)
    git(folder, "fsck", "--connectivity-only")
    return git(folder, "log", "--all", "--reverse", "--format=%s").splitlines()


# ---- plain folders


def test_a_plain_folder_becomes_one_commit_and_is_not_changed(tmp_path: Path) -> None:
    folder = tmp_path / "plain@home"
    for path, text in {
        "pkg/a.py": "x = 1\n",
        ".gitignore": "*.log\n",
        "noise.log": "",
        "build/lib/pkg/a.py": "x = 1\n",
        "pkg/__pycache__/a.pyc": "",
        ".venv/pyvenv.cfg": "",
        ".venv/lib/a.py": "",
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    before = sorted(folder.rglob("*"))
    first = fetch(parse_spec(str(folder)), tmp_path / "one")
    second = fetch(parse_spec(str(folder)), tmp_path / "two")
    assert set(first.tree) == {"pkg/a.py", ".gitignore"}
    assert (first.commits, first.commit) == (1, second.commit)
    assert sorted(folder.rglob("*")) == before
    with pytest.raises(RepositoryError, match="plain folder"):
        fetch(parse_spec(f"{folder}@v1"), tmp_path / "one")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="there is no folder"):
        fetch(parse_spec("./absent", tmp_path), tmp_path / "cache")


# ---- releases


def archive_of(files: dict[str, str], top: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for path, text in files.items():
            info = tarfile.TarInfo(f"{top}/{path}")
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    return buffer.getvalue()


class Index:
    """A package index in a folder, served over HTTP."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[str] = []
        (folder / "simple/thing").mkdir(parents=True)

    def add(
        self, version: str, files: dict[str, str], digest: str | None = None, attributes: str = ""
    ) -> None:
        data = archive_of(
            {"PKG-INFO": f"Metadata-Version: 2.1\nName: thing\nVersion: {version}\nLicense: BSD\n", **files},
            f"thing-{version}",
        )
        (self.folder / f"thing-{version}.tar.gz").write_bytes(data)
        digest = hashlib.sha256(data).hexdigest() if digest is None else digest
        fragment = f"#sha256={digest}" if digest else ""
        self.lines.append(
            f'<a href="/thing-{version}.tar.gz{fragment}" {attributes}>thing-{version}.tar.gz</a>'
        )
        (self.folder / "simple/thing/index.html").write_text(
            f"<!DOCTYPE html><html><body>{''.join(self.lines)}</body></html>"
        )


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    folder = tmp_path / "index"
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))
    ) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield Index(folder)
        server.shutdown()
        thread.join()


def releases(spec: str, cache: Path) -> Checkout:
    return fetch(parse_spec(spec), cache)


def test_a_release_is_one_commit_that_depends_only_on_its_content(index: Index, tmp_path: Path) -> None:
    index.add(
        "1.0",
        {
            "thing/__init__.py": "x = 1\n",
            "thing/__pycache__/x.pyc": "",
            "thing.egg-info/PKG-INFO": "Name: thing\n",
        },
    )
    first = releases("pypi:thing==1.0", tmp_path / "one")
    assert set(first.tree) == {"PKG-INFO", "thing/__init__.py", "thing.egg-info/PKG-INFO"}
    assert (first.commits, first.licence) == (1, "BSD")
    assert releases("pypi:thing==1.0", tmp_path / "two").commit == first.commit


def test_a_range_of_releases_is_a_history_in_version_order(index: Index, tmp_path: Path) -> None:
    for version in ("0.9", "0.10", "1.0", "0.8", "1.0rc1"):
        index.add(version, {"thing.py": f"version = {version!r}\n"})
    index.add("0.9.1", {"thing.py": ""}, attributes='data-yanked="broken"')
    found = releases("pypi:thing==0.9..1.0", tmp_path / "cache")
    history = history_of(found)
    assert history is not None
    assert history_subjects(history, tmp_path / "history") == [
        "thing 0.9",
        "thing 0.10",
        "thing 1.0",
    ]
    assert found.tree.text("thing.py") == "version = '1.0'\n"


def test_a_release_in_the_cache_needs_no_index(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.add("1.0", {"thing.py": ""})
    first = releases("pypi:thing==1.0", tmp_path / "cache")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    assert releases("pypi:thing==1.0", tmp_path / "cache") == first
    with pytest.raises(RepositoryError, match="package index cannot be read"):
        releases("pypi:thing==1.0", tmp_path / "other")


def test_missing_releases_and_projects_are_named(index: Index, tmp_path: Path) -> None:
    index.add("1.0", {"thing.py": ""})
    for spec in ("pypi:thing==2.0", "pypi:thing==0.5..1.0", "pypi:thing==1.0..2.0"):
        with pytest.raises(RepositoryError, match=r"no source distribution of thing .*newest are: 1\.0"):
            releases(spec, tmp_path / "cache")
    with pytest.raises(RepositoryError, match="no project 'absent'"):
        releases("pypi:absent==1.0", tmp_path / "cache")


def test_an_archive_that_is_not_what_the_index_promised_is_refused(index: Index, tmp_path: Path) -> None:
    index.add("1.0", {"thing.py": ""}, digest="0" * 64)
    index.add("2.0", {"thing.py": ""}, digest="")
    with pytest.raises(RepositoryError, match="the index promises 000"):
        releases("pypi:thing==1.0", tmp_path / "cache")
    with pytest.raises(RepositoryError, match="no sha256"):
        releases("pypi:thing==2.0", tmp_path / "cache")


# ---- archives


def test_links_devices_and_paths_outside_are_left_out_of_an_archive() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, kind, link in (
            ("top/good.py", tarfile.REGTYPE, ""),
            ("top/../../evil.py", tarfile.REGTYPE, ""),
            ("/etc/evil", tarfile.REGTYPE, ""),
            ("top/.git/config", tarfile.REGTYPE, ""),
            ("top/link", tarfile.SYMTYPE, "/etc/passwd"),
            ("top/hard", tarfile.LNKTYPE, "/etc/passwd"),
            ("top/device", tarfile.CHRTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            tar.addfile(info, io.BytesIO(b""))
    assert set(read_archive("x.tar.gz", buffer.getvalue()).tree) == {"good.py"}


def test_zip_archives_keep_executable_bits_and_drop_links() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, mode in (
            ("top/run.sh", stat.S_IFREG | 0o755),
            ("top/link", stat.S_IFLNK | 0o777),
            ("top/../x", stat.S_IFREG | 0o644),
        ):
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, "x")
    tree = read_archive("x.zip", buffer.getvalue()).tree
    assert set(tree) == {"run.sh"}
    assert tree["run.sh"].executable


def test_an_archive_that_unpacks_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfplay.repositories.archives.MAX_TREE_BYTES", 1 << 20)
    monkeypatch.setattr("selfplay.repositories.archives.MAX_TREE_FILES", 10)
    bomb = archive_of({"zeros": "0" * (4 << 20)}, "top")
    assert len(bomb) < 50_000
    with pytest.raises(RepositoryError, match="unpacks to more than"):
        read_archive("bomb.tar.gz", bomb)


def test_a_file_that_is_not_an_archive_is_refused() -> None:
    for name in ("x.tar.gz", "x.zip", "x.tar.bz2", "x.tar.xz", "x.rar"):
        with pytest.raises(RepositoryError, match="x\\."):
            read_archive(name, b"not an archive at all")


# ---- the rest


def test_pips_own_configuration_is_honoured_and_variables_win(tmp_path: Path) -> None:
    (tmp_path / ".config/pip").mkdir(parents=True)
    (tmp_path / ".config/pip/pip.conf").write_text(
        "[global]\nindex-url = https://mirror/simple\ncert = /c.pem\n"
    )
    home = {"HOME": str(tmp_path)}
    assert pip_settings(home)["index-url"] == "https://mirror/simple"
    assert (
        pip_settings({**home, "PIP_INDEX_URL": "https://other/simple"})["index-url"] == "https://other/simple"
    )
    assert "index-url" not in pip_settings({**home, "PIP_CONFIG_FILE": "/dev/null"})


def test_licences_are_read_from_metadata_then_files() -> None:
    def tree(**files: str) -> Tree:
        return Tree({name.replace("__", "."): FileEntry(text.encode()) for name, text in files.items()})

    assert licence_of(tree(pyproject__toml='[project]\nlicense = {text = "Apache-2.0"}\n')) == "Apache-2.0"
    assert (
        licence_of(Tree({"PKG-INFO": FileEntry(b"Classifier: License :: OSI Approved :: MIT License\n")}))
        == "MIT License"
    )
    assert licence_of(tree(LICENSE__txt="Mozilla Public License Version 2.0")) == "MPL-2.0"
    assert licence_of(tree(README__md="none")) == "unknown"


def test_a_local_repository_is_named_from_anywhere_by_its_absolute_line(tmp_path):
    (tmp_path / "my repo").mkdir()
    spec = parse_spec("'./my repo' test=\"pytest -x\"", tmp_path)
    again = parse_spec(absolute_line(spec), Path("/"))
    assert (again.location, again.test, again.name) == (spec.location, spec.test, spec.name)


def test_a_local_repository_that_is_not_there_is_a_bad_line(tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text("./nowhere\n")
    with pytest.raises(RepositoryListError, match=r"line 1: './nowhere': there is no folder"):
        read_repository_list(listed)
