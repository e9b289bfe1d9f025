"""Facts of admitted environments on disk: what their tests do. The installed dependencies are kept by the
backend.

Does not compute keys; `build` does. Invariant: a file appears complete or not at all, since it is renamed
into place. A damaged or missing file means that the environment is built again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfplay.outcomes import TestOutcomes
from selfplay.repositories.checkouts import Checkout
from selfplay.repositories.environment import Environment
from selfplay.repositories.scripts import command_script, standard_parser, standard_script
from selfplay.repositories.targets import Target, pack_calls, unpack_calls
from selfplay.repositories.whole_files import write_json
from selfplay.sandbox.base import SandboxBackend
from selfplay.source.test_material import TestMaterial

if TYPE_CHECKING:
    from selfplay.repositories.dependencies import Dependencies


@dataclass(frozen=True)
class Reading:
    """What the files of a checkout say about its environment. A later version may read more in them.

    first_build_key: of the installation that is tried first.
    """

    dependencies: Dependencies
    variables: Mapping[str, str]
    first_build_key: str

    @property
    def digest(self) -> str:
        found = self.dependencies
        parts = [self.first_build_key, found.more, found.unread, sorted(self.variables.items())]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    def agrees_with(self, facts: Mapping[str, Any]) -> bool:
        """Whether the environment of these facts is still the one that a build would make.

        Facts of before this was recorded are, if their first installation was the right one.
        """
        if "reading" in facts:
            return bool(facts["reading"] == self.digest)
        was_first = facts["image"] or facts["build_key"] == self.first_build_key
        return bool(was_first and facts["variables"] == self.variables and not self.dependencies.unread)


def read_facts(
    path: Path, checkout: Checkout, backend: SandboxBackend, reading: Reading
) -> Environment | None:
    """The environment whose facts are in a file.

    None if they are absent or damaged, the backend lacks its part, or `reading` says something else.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        build_key, image = facts["build_key"], facts["image"]
        command = facts.get("command", "")
        if not image and not backend.environment_exists(build_key):
            return None
        if not reading.agrees_with(facts):
            return None
        return Environment(
            key=path.stem,
            reference=image or backend.environment_reference(build_key),
            repository=checkout.name,
            base_commit=checkout.commit,
            licence=checkout.licence,
            tree=checkout.tree,
            checkout=checkout,
            test_files=tuple(facts["test_files"]),
            script=(
                command_script(command) if command else standard_script(facts["test_files"], facts["options"])
            ),
            parser=facts["parser"] if command else standard_parser(facts["options"]),
            baseline=TestOutcomes(frozenset(facts["passed"]), frozenset()),
            excluded_ids=frozenset(facts["excluded_ids"]),
            targets=tuple(Target(**target) for target in facts["targets"]),
            calls=unpack_calls(facts["calls"]),
            variables=facts["variables"],
            options=facts["options"],
            command=command,
            notes=tuple(facts.get("test_notes", ())),
            left_out=tuple(facts.get("left_out", ())),
            material=_unpack_material(facts["material"]),
            hidden=tuple(facts["hidden"]),
            copied=tuple((path, name) for path, name in facts["copied"]),
        )
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _unpack_material(facts: Mapping[str, Any]) -> TestMaterial:
    imports = {str(path): tuple(found) for path, found in facts["imports"].items()}
    return TestMaterial(tuple(facts["files"]), tuple(facts["covered"]), imports)


def write_facts(path: Path, environment: Environment, build_key: str, reading: Reading) -> None:
    """Write the facts of an environment. build_key: of its installation, "" for an image. Raises OSError."""
    facts = {
        "repository": environment.repository,
        "build_key": build_key,
        "image": "" if build_key else environment.reference,
        "reading": reading.digest,
        "notes": environment.checkout.notes,
        "left_out": environment.left_out,
        "test_files": environment.test_files,
        "options": environment.options,
        "test_notes": environment.notes,
        **({"command": environment.command, "parser": environment.parser} if environment.command else {}),
        "passed": sorted(environment.baseline.passed),
        "excluded_ids": sorted(environment.excluded_ids),
        "targets": [asdict(target) for target in environment.targets],
        "calls": pack_calls(environment.calls),
        "material": asdict(environment.material),
        "hidden": environment.hidden,
        "copied": environment.copied,
        "variables": dict(environment.variables),
    }
    write_json(path, facts)
