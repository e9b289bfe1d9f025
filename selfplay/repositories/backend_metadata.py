"""Asks a repository's build backend for its metadata, for what its files do not state: PEP 517, through pip.

Invariant: the backend is code of the repository, so it runs in the sandbox of a build, and nothing of that
sandbox is kept but the text of the answer. The environment for the tests is built in another one.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from selfplay.errors import EnvironmentBuildError
from selfplay.repositories.installation import build_with_python
from selfplay.repositories.versions import UNKNOWN_VERSION
from selfplay.sandbox.base import VENV
from selfplay.source.path_policy import is_test_path
from selfplay.source.trees import Tree

if TYPE_CHECKING:
    from selfplay.repositories.trial import BuildJob

MAX_PACKED_BYTES = 700_000  # of the tree as base64: the script of a build may have 1 MiB
MAX_PLAIN_BYTES = 32 << 20
MARK = "selfplay: the metadata follow"
ANSWERED = 90  # exit code of a script that has printed the answer: a build that fails is not kept
# How to tell the tools that take the version from git, which is not there.
VERSION_VARIABLES = (
    "SETUPTOOLS_SCM_PRETEND_VERSION",
    "PDM_BUILD_SCM_VERSION",
    "PBR_VERSION",
    "POETRY_DYNAMIC_VERSIONING_BYPASS",
    "UV_DYNAMIC_VERSIONING_BYPASS",
)
HEADERS = {
    "name": "Name",
    "version": "Version",
    "provides_extra": "Provides-Extra",
    "requires_dist": "Requires-Dist",
}


def ask_backend(job: BuildJob) -> str:
    """The core metadata of the top project as its build backend gives them, "" if it gives none.

    Raises SandboxUnavailable if the machine fails.
    """
    script = _script(job.checkout.tree, job.checkout.tag_version or UNKNOWN_VERSION)
    if not script:
        return ""
    job.report("asking its build backend what it depends on")
    log = job.logs / "metadata.log"
    identity = f"{job.checkout.spec.python or ''}{script}"
    key = f"metadata-{hashlib.sha256(identity.encode()).hexdigest()[:24]}"
    try:
        build_with_python(job, key, script, log)
    except EnvironmentBuildError:
        answer = read_answer(log.read_text(encoding="utf-8", errors="replace") if log.is_file() else "")
    else:
        answer = ""  # the script always ends with an error; what ended it otherwise is no answer
    if not answer:
        job.report(f"its build backend gives no metadata (log: {log}); its files are read instead")
    return answer


def read_answer(log: str) -> str:
    """The metadata in the log of a script, as the headers of a METADATA file. "" for a log without any."""
    try:
        report: Any = json.loads(log.rpartition(f"{MARK}\n")[2].strip().splitlines()[-1])
        metadata = report["install"][0]["metadata"]
        lines = []
        for field, header in HEADERS.items():
            values = metadata.get(field, [])
            values = values if isinstance(values, list) else [values]
            lines += [f"{header}: {' '.join(str(value).split())}" for value in values]
        return "\n".join(lines) + "\n" if metadata.get("name") else ""
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ""


def _script(tree: Tree, version: str) -> str:
    """The script that unpacks the tree and prints pip's report about it. "" if the tree is too large."""
    packed = next(filter(None, map(_packed, _selections(tree))), "")
    if not packed:
        return ""
    exports = "".join(f"export {name}={shlex.quote(version)}\n" for name in VERSION_VARIABLES)
    return (
        "mkdir project && cd project\n"
        f"printf %s {packed} | base64 -d | tar -xz\n"
        f"{exports}"
        f"{VENV}/bin/python -m pip install --quiet --no-input --no-cache-dir --disable-pip-version-check "
        "--dry-run --ignore-installed --no-deps --report /tmp/report.json .\n"
        f"echo; echo '{MARK}'\n"
        f"{VENV}/bin/python -c 'import json; print(json.dumps(json.load(open(\"/tmp/report.json\"))))'\n"
        f"exit {ANSWERED}\n"
    )


def _selections(tree: Tree) -> Iterator[Tree]:
    """Yield the tree, then smaller parts of it that a build backend may still be satisfied with."""
    yield tree
    yield Tree({p: e for p, e in tree.items() if "/" not in p or (p.endswith(".py") and not is_test_path(p))})
    small = re.compile(r"[^/]+|.*(/__init__|/_*(version|about)_*)\.py|(requirements|deps)/.*\.txt")
    yield Tree({p: e for p, e in tree.items() if small.fullmatch(p) and len(e.content) < 1 << 18})


def _packed(tree: Tree) -> str:
    if sum(len(entry.content) for entry in tree.values()) > MAX_PLAIN_BYTES:
        return ""
    packed = base64.b64encode(gzip.compress(tree.to_tar(), mtime=0)).decode()
    return packed if len(packed) <= MAX_PACKED_BYTES else ""
