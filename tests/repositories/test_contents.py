"""What a tree holds of a folder, an archive or a commit, and what is said about the rest."""

import io
import stat
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from selfplay.errors import RepositoryError
from selfplay.repositories.archives import read_archive
from selfplay.repositories.checkouts import Checkout
from selfplay.repositories.contents import Gathering
from selfplay.repositories.fetching import fetch
from selfplay.repositories.specs import parse_spec
from selfplay.source.trees import FileEntry

PACKAGE = {"shop/__init__.py": "x = 1\n", "data/prices.csv": "1,2\n", "data/more/all.csv": "3\n"}
LINKS = {
    "shop/prices.csv": "../data/prices.csv",
    "tests/data": "../data",
    "chain": "tests/data/more",
    "outside": "../../etc/passwd",
    "absolute": "/etc/passwd",
    "nowhere": "data/none.csv",
    "data/circle": "../data",
    "one": "two",
    "two": "one",
}


def fill(folder: Path, files: dict[str, str], links: dict[str, str]) -> Path:
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    for path, target in links.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).symlink_to(target)
    return folder


def commit(folder: Path, tag: str = "") -> Path:
    name = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "-A", "-f"], [*name, "commit", "-qm", "one"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    if tag:
        subprocess.run(["git", "tag", tag], cwd=folder, check=True)
    return folder


def checkout(folder: Path, cache: Path) -> Checkout:
    return fetch(parse_spec(str(folder)), cache)


def tar_of(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.add(folder, "top")
    return buffer.getvalue()


def zip_of(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(folder.rglob("*")):
            name = f"top/{path.relative_to(folder)}"
            if path.is_symlink():
                info = zipfile.ZipInfo(name)
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
                archive.writestr(info, str(path.readlink()))
            elif path.is_file():
                archive.write(path, name)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["folder", "commit", "tar", "zip"])
def test_links_that_stay_inside_become_files_and_the_rest_is_named(kind: str, tmp_path: Path) -> None:
    folder = fill(tmp_path / "shop", PACKAGE, LINKS)
    if kind in ("tar", "zip"):
        name, data = ("x.tar.gz", tar_of(folder)) if kind == "tar" else ("x.zip", zip_of(folder))
        tree, notes = read_archive(name, data)
    else:
        found = checkout(commit(folder) if kind == "commit" else folder, tmp_path / "cache")
        tree, notes = found.tree, found.notes
    assert set(tree) == {
        *PACKAGE,
        "shop/prices.csv",
        "tests/data/prices.csv",
        "tests/data/more/all.csv",
        "chain/all.csv",
    }
    assert tree["chain/all.csv"].content == b"3\n"
    assert notes == (
        "left out links that lead in a circle: data/circle, one, two",
        "left out links that lead out of the repository: absolute, outside",
        "left out links that lead to nothing: nowhere",
        "links became copies of what they lead to: chain → tests/data/more, "
        "shop/prices.csv → ../data/prices.csv, tests/data → ../data",
    )


def test_a_hard_link_in_an_archive_is_a_copy() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("top/a/one.py")
        info.size = 2
        tar.addfile(info, io.BytesIO(b"x\n"))
        link = tarfile.TarInfo("top/b/two.py")
        link.type, link.linkname = tarfile.LNKTYPE, "top/a/one.py"
        tar.addfile(link)
    assert read_archive("x.tar", buffer.getvalue()).tree["b/two.py"].content == b"x\n"


def test_copies_of_links_count_as_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfplay.repositories.contents.MAX_TREE_FILES", 100)
    found = Gathering("bomb")
    found.add_file("0/x", FileEntry(b""))
    for level in range(1, 40):
        found.add_link(f"{level}/a", f"../{level - 1}")
        found.add_link(f"{level}/b", f"../{level - 1}")
    with pytest.raises(RepositoryError, match="bomb: .* files"):
        found.contents()


def test_many_links_cost_little(tmp_path: Path) -> None:
    found = Gathering("many")
    for number in range(20_000):
        found.add_file(f"d{number % 100}/{number}.py", FileEntry(b""))
        found.add_link(f"l/{number}", f"../d{number % 100}/{number}.py")
    tree, notes = found.contents()
    assert len(tree) == 21_000
    assert any("links beyond the first 1000" in note for note in notes)


def test_tracked_leftovers_are_named_and_data_that_looks_like_them_stays(tmp_path: Path) -> None:
    files = {
        **PACKAGE,
        "shop/__init__.py.orig": "x = 1\n",
        "dist/shop-1.whl": "",
        "build/lib/shop/__init__.py": "x = 1\n",
        "tests/data/patch.rej": "kept: there is no file `patch`\n",
        "data/with\u00a0space.csv": "",
        "data/bell\x07.csv": "",
        "shop/__pycache__/a.pyc": "",
    }
    found = checkout(commit(fill(tmp_path / "shop", files, {})), tmp_path / "cache")
    assert set(found.tree) == {*PACKAGE, "tests/data/patch.rej", "data/with\u00a0space.csv"}
    assert found.notes == (
        "left out leftovers of builds and tools, which may be copies of the source: "
        "build/lib/shop/__init__.py, dist/shop-1.whl, shop/__init__.py.orig",
        "left out names that cannot be printed: data/bell\\x07.csv",
    )


def test_a_plain_folder_keeps_generated_modules_that_others_import(tmp_path: Path) -> None:
    files = {
        ".gitignore": "_version.py\nsecrets.py\n*.log\n",
        "shop/__init__.py": "from shop._version import version\n",
        "shop/_version.py": "version = '2.5.0'\n",
        "shop/secrets.py": "password = 'x'\n",
        "noise.log": "",
        ".venv/pyvenv.cfg": "",
    }
    found = checkout(fill(tmp_path / "shop", files, {}), tmp_path / "cache")
    assert set(found.tree) == {".gitignore", "shop/__init__.py", "shop/_version.py"}
    assert found.notes == (
        "left out files that .gitignore names: noise.log, shop/secrets.py",
        "left out leftovers of builds and tools, which may be copies of the source: .venv/",
        "kept modules that .gitignore names, because others import them: shop/_version.py",
    )


# ---- versions


@pytest.mark.parametrize(
    ("metadata", "path"),
    [
        ('[tool.setuptools_scm]\nwrite_to = "shop/_version.py"\n', "shop/_version.py"),
        ('[tool.setuptools_scm]\nversion_file = "shop/_version.py"\n', "shop/_version.py"),
        ('[tool.hatch.build.hooks.vcs]\nversion-file = "shop/_version.py"\n', "shop/_version.py"),
        ('[tool.pdm.version]\nsource = "scm"\nwrite_to = "shop/_version.py"\n', "shop/_version.py"),
        ('[tool.versioningit.write]\nfile = "shop/_version.py"\n', "shop/_version.py"),
        ('[[tool.scikit-build.generate]]\npath = "shop/_version.py"\n', "shop/_version.py"),
    ],
)
def test_a_version_file_that_a_build_writes_is_made(metadata: str, path: str, tmp_path: Path) -> None:
    files = {**PACKAGE, "pyproject.toml": f'[project]\nname = "shop"\ndynamic = ["version"]\n{metadata}'}
    found = checkout(commit(fill(tmp_path / "shop", files, {}), "v2.5.0"), tmp_path / "cache")
    values: dict[str, object] = {}
    exec(found.tree.text(path), values)
    assert (values["__version__"], values["version"]) == ("2.5.0", "2.5.0")
    assert values["version_tuple"] == (2, 5, 0)
    assert found.notes == (f"made {path}, which a build of the package writes (version 2.5.0)",)


def test_a_setup_script_that_uses_scm_gets_its_file_by_its_template(tmp_path: Path) -> None:
    files = {
        "src/shop/__init__.py": "",
        "setup.py": "from setuptools import setup\n"
        "setup(name='shop', use_scm_version={'write_to': 'src/shop/v.txt', "
        "'write_to_template': 'at {version}'})\n",
    }
    found = checkout(commit(fill(tmp_path / "shop", files, {}), "shop-1.4"), tmp_path / "cache")
    assert found.tree.text("src/shop/v.txt") == "at 1.4"


def test_a_version_module_that_only_an_import_names_is_made(tmp_path: Path) -> None:
    files = {
        "src/shop/__init__.py": "try:\n    from shop._version import version\n"
        "except ImportError:\n    pass\n",
        "src/other/__init__.py": "from ._scm_version import version\nfrom shop._version import v\n",
        "pyproject.toml": '[build-system]\nrequires = ["setuptools-scm"]\n[project]\nname = "shop"\n',
    }
    found = checkout(commit(fill(tmp_path / "shop", files, {}), "1.4"), tmp_path / "cache")
    assert set(found.tree) - set(files) == {"src/shop/_version.py", "src/other/_scm_version.py"}


def test_a_version_file_without_tags_says_so(tmp_path: Path) -> None:
    files = {**PACKAGE, "pyproject.toml": '[tool.setuptools_scm]\nwrite_to = "shop/_version.py"\n'}
    found = checkout(fill(tmp_path / "shop", files, {}), tmp_path / "cache")
    assert found.notes == (
        "made shop/_version.py, which a build of the package writes (version 0.0.0, since no tag names one)",
    )
