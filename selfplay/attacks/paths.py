"""Attacks through paths (row 13): links in submissions, and archives that write outside their folder."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from selfplay.agent.workspaces import read_submission
from selfplay.attacks.base import Attack, Broken, Held, Outcome
from selfplay.attacks.ground import CODE, Ground
from selfplay.errors import ArtifactError, SelfplayError
from selfplay.repositories.archives import read_archive
from selfplay.sandbox.base import Limits
from selfplay.verdicts.artifact import Artifact

ACCOUNTS = "root:"  # the first bytes of /etc/passwd, in the sandbox and on the host

# ---- links (row 13)


def submit_a_link(ground: Ground) -> Outcome:
    with ground.solver() as box:
        box.run(
            f"rm {CODE}; ln -s /etc/passwd {CODE}; ln -s /etc heron/etc; "
            "ln -s /etc/passwd heron/link.py; mkfifo heron/pipe.py"
        )
        patch = ground.taken(box)
    return (
        Broken("a link was followed into the prediction")
        if ACCOUNTS in patch or "heron/etc" in patch
        else Held("left out")
    )


def submit_a_linked_artifact(ground: Ground) -> Outcome:
    with ground.box() as box:
        box.run(
            "cd /submit; for f in bug_inject.diff test_script.sh; do ln -s /etc/passwd $f; done; "
            "ln -s /etc test_weaken.diff"
        )
        found = read_submission(box, Limits(), ())
    return Broken(f"{sorted(found)} were read through links") if found else Held("left out")


def validate_a_linked_artifact(ground: Ground) -> Outcome:
    """`selfplay validate DIR` reads a folder on the host."""
    secret = ground.canary("private.txt")
    secret.write_text("a private file\n")
    folder = ground.folder("artifact")
    ground.artifact().write(folder)
    (folder / "test_script.sh").unlink()
    (folder / "test_script.sh").symlink_to(secret)
    try:
        artifact = Artifact.read(folder)
    except ArtifactError as error:
        return Held(str(error).partition(";")[0])
    return Broken(f"a file outside the artifact was read: {artifact.test_script!r}")


# ---- archives (row 13)


def hostile_tar(outside: Path) -> bytes:
    """An archive with names that climb to `outside`, a link to it, a file behind that link, and a device."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name in (
            "../climbed",
            str(outside / "absolute"),
            "a/../../climbed",
            "top/fine.py",
            "top/link/through",
        ):
            if name.endswith("through"):
                link = tarfile.TarInfo("top/link")
                link.type, link.linkname = tarfile.SYMTYPE, str(outside)
                archive.addfile(link)
            member = tarfile.TarInfo(name)
            member.size = 5
            archive.addfile(member, io.BytesIO(b"x = 1"))
        device = tarfile.TarInfo("top/device")
        device.type = tarfile.FIFOTYPE
        archive.addfile(device)
    return out.getvalue()


def hostile_zip(outside: Path) -> bytes:
    """An archive with names that climb to `outside` and a link to it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in ("../climbed", str(outside / "absolute"), "top/fine.py"):
            archive.writestr(name, "x = 1")
        link = zipfile.ZipInfo("top/link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, str(outside))
    return out.getvalue()


def unpack(name: str, data: bytes, folder: Path) -> None:
    read_archive(name, data).tree.write_to(folder)


def climb_out_of_an_archive(make: Callable[[Path], bytes], name: str) -> Callable[[Ground], Outcome]:
    def run(ground: Ground) -> Outcome:
        outside = ground.folder("outside")
        inside = outside / "inside"
        inside.mkdir()
        try:
            unpack(name, make(outside), inside)
        except SelfplayError as error:
            return Held(str(error))
        strange = [
            path for path in inside.rglob("*") if path.is_symlink() or not (path.is_file() or path.is_dir())
        ]
        found = [path.name for path in outside.iterdir() if path != inside] + [path.name for path in strange]
        return (
            Broken(f"unpacking made {found} outside its folder, or as links or devices")
            if found
            else Held("left out")
        )

    return run


ATTACKS = (
    Attack("submit-link", 13, "hand in links to other files as code", submit_a_link),
    Attack("artifact-link", 13, "hand in links as the artifact's files", submit_a_linked_artifact),
    Attack(
        "validate-link", 13, "an artifact folder with a link to a private file", validate_a_linked_artifact
    ),
    Attack(
        "tar-paths",
        13,
        "a tar with ../, absolute names, links and devices",
        climb_out_of_an_archive(hostile_tar, "evil-1.0.tar.gz"),
    ),
    Attack(
        "zip-paths",
        13,
        "a zip with ../, absolute names and links",
        climb_out_of_an_archive(hostile_zip, "evil-1.0.zip"),
    ),
)
