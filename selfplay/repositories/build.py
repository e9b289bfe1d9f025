"""Checkout -> runnable environment: dependencies installed inside a sandbox, tests run there, admitted only when its tests can be trusted.

Invariants: the repository itself is never installed, so that it is importable from the workspace alone; what is cached was admitted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from selfplay.config import EnvironmentSettings
from selfplay.errors import EnvironmentBuildError, OutcomesError, full_disk_told
from selfplay.outcomes import TestOutcomes, parse_outcomes
from selfplay.repositories.cache import SCHEMA, locked, read_facts, write_facts
from selfplay.repositories.checkouts import Checkout
from selfplay.repositories.dependencies import Dependencies, read_dependencies, requirement_files
from selfplay.repositories.environment import (
    PYTEST,
    Environment,
    command_script,
    shipped_text,
    standard_parser,
    standard_script,
)
from selfplay.repositories.targets import (
    Calls,
    Target,
    find_calls,
    find_targets,
    read_calls,
)
from selfplay.repositories.test_hints import (
    PARSERS,
    TestCommand,
    read_test_command,
    read_test_hint,
    shipped_parser,
)
from selfplay.sandbox.base import VENV, WORKSPACE, ExecResult, Limits, Sandbox, SandboxBackend, SandboxSpec
from selfplay.source.path_policy import (
    OTHER_CODE,
    is_other_code,
    is_protected_path,
)
from selfplay.source.trees import FileEntry, Tree

OLDER_PYTEST = "pytest==8.4.2"  # for suites that use what 9 removed
LOG_BYTES = 4 << 20
LOG_TAIL = 4_000
MAX_TEST_IDS = 50_000
BUILD_ATTEMPTS = 3
COLLECT_OPTIONS = "--collect-only -q --color=no --no-header --disable-warnings --rootdir=. --continue-on-collection-errors -p no:cacheprovider"
UNSTABLE_ID = re.compile(r"0x[0-9a-fA-F]{6,}|<[\w.]+ object|<function |<class |<built-in ")
PLANTED = b'\nraise RuntimeError("planted by selfplay: this module was imported from the workspace")\n'
UNREADABLE = b")]} planted by selfplay: no language reads this {[(\n"
CHEAP_BYTES = 200  # smaller source files may be equal by chance

# Runs inside the sandbox: which files outside the workspace equal one of the repository's (size and hash on stdin).
PROBE = """
import hashlib, json, os, sys
known = {(size, digest) for size, digest in json.load(sys.stdin)}
sizes = {size for size, _ in known}
copies = []
for folder, folders, files in os.walk("/"):
    if folder == "/":
        folders[:] = [name for name in folders if name not in ("proc", "sys", "dev", "testbed", "tmp", "submit")]
    for name in files:
        path = os.path.join(folder, name)
        try:
            if name.endswith(".py") and os.path.getsize(path) in sizes:
                with open(path, "rb") as file:
                    data = file.read()
                if (len(data), hashlib.sha256(data).hexdigest()) in known:
                    copies.append(path)
        except OSError:
            pass
try:
    import hypothesis
    hypothesis.settings.get_profile("ci")
    has_profile = True
except Exception:
    has_profile = False
print(json.dumps({"copies": copies, "hypothesis": has_profile, "python": "%d.%d" % sys.version_info[:2]}))
"""


# ---- preparing


def prepare_environment(
    checkout: Checkout,
    backend: SandboxBackend,
    settings: EnvironmentSettings,
    limits: Limits,
    cache: Path,
    progress: Callable[[str], None],
) -> Environment:
    """Build and admit an environment, or find it in the cache, keyed by the tree, its hints, this code's recipe and the backend.

    Raises EnvironmentBuildError naming the repository, the reason and the log; SandboxUnavailable and DiskFullError when the machine fails.
    """
    key = _environment_key(checkout, backend, settings)
    facts = cache / "environments" / "facts" / f"{key}.json"
    found = read_facts(facts, checkout, backend)
    if found is not None:
        return found
    with full_disk_told(cache), locked(facts.with_suffix(".lock")):
        found = read_facts(facts, checkout, backend)  # another process may have been first
        if found is None:
            logs = cache / "logs" / f"{checkout.name}-{key[:12]}"
            logs.mkdir(parents=True, exist_ok=True)
            found, build_key = _Preparation(checkout, backend, settings, limits, logs, progress).prepare(key)
            write_facts(facts, found, build_key)
        return found


def _environment_key(checkout: Checkout, backend: SandboxBackend, settings: EnvironmentSettings) -> str:
    spec = checkout.spec
    recipe = [shipped_text(name) for name in ("test_script.sh", "test_parser.py", "call_recorder.py")]
    parts = [
        SCHEMA,
        checkout.tree.digest,
        spec.python,
        spec.install,
        spec.test,
        backend.name,
        settings.baselines,
        PYTEST,
        OLDER_PYTEST,
        PROBE,
        *recipe,
    ]
    parts += [spec.location] if spec.kind == "docker" else []
    if spec.parser is not None:
        parts += ["parser", spec.parser, *(shipped_parser(name) for name in PARSERS)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


# ---- what to install


def build_script(
    dependencies: Dependencies,
    extra: Sequence[str],
    install: str | None,
    files: Mapping[str, str],
    pytest: str = PYTEST,
) -> str:
    """The commands that fill /opt/env. First the repository is entered as installed, by metadata alone, so that nothing pulls in a copy."""
    pip = "python -m pip install --quiet --no-input --no-cache-dir --disable-pip-version-check --no-warn-script-location"
    folder = f"{re.sub(r'[-.]+', '_', dependencies.name)}-{dependencies.version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {dependencies.name}\nVersion: {dependencies.version}\n"
    lines = [
        "export PYTHONDONTWRITEBYTECODE=",  # pip's compiled modules are what makes every later start quick
        f'info="$({VENV}/bin/python -c \'import sysconfig; print(sysconfig.get_path("purelib"))\')"/{shlex.quote(folder)}',
        'mkdir -p "$info"',
        f'printf %s {shlex.quote(metadata)} > "$info/METADATA"',
        'echo selfplay > "$info/INSTALLER"',
        f'printf "%s,,\\n" {shlex.quote(folder)}/METADATA {shlex.quote(folder)}/INSTALLER {shlex.quote(folder)}/RECORD > "$info/RECORD"',
        f"export PATH={VENV}/bin:$PATH",
    ]
    if install is None:
        first = [*([pytest] if pytest else []), *dependencies.runtime]
        lines += [f"{pip} {shlex.join(first)}"] if first else []
        wanted = [*dependencies.test, *extra]
        if wanted:
            one_by_one = "\n".join(
                f"  {pip} {shlex.quote(text)} || echo 'selfplay: left out' {shlex.quote(text)}"
                for text in wanted
            )
            lines.append(f"{pip} {shlex.join(wanted)} || {{\n{one_by_one}\n}}")
    else:
        for path, text in files.items():
            lines.append(
                f"mkdir -p {shlex.quote(str(PurePosixPath(path).parent))} && printf %s {shlex.quote(text)} > {shlex.quote(path)}"
            )
        lines.append(install)
        lines += [f"python -c 'import pytest' 2>/dev/null || {pip} {pytest}"] if pytest else []
    lines.append("python -m pip list --disable-pip-version-check --format=freeze")
    lines.append("python -m pip uninstall --quiet --yes pip")  # it carries copies of other projects
    return "\n".join(lines) + "\n"


def import_variables(tree: Tree) -> dict[str, str]:
    """Where the package lies in the workspace: at the top, or below src/ or lib/."""
    roots = [WORKSPACE]
    for folder in ("src", "lib", "python"):
        if (
            any(re.fullmatch(rf"{folder}/([A-Za-z_]\w*/__init__|[A-Za-z_]\w*)\.py", path) for path in tree)
            and f"{folder}/__init__.py" not in tree
        ):
            roots.insert(0, f"{WORKSPACE}/{folder}")
    return {"PYTHONPATH": ":".join(roots), "PYTHONDONTWRITEBYTECODE": "1"}


def _source_files(tree: Tree) -> list[str]:
    return [path for path in sorted(tree) if path.endswith(".py") and not is_protected_path(path, tree)]


def _planted(path: str, entry: FileEntry) -> FileEntry:
    return FileEntry(entry.content + PLANTED if path.endswith(".py") else UNREADABLE, entry.executable)


def _likely_test_files(tree: Tree) -> list[str]:
    """For suites whose files pytest does not find by its own patterns."""
    return [
        path
        for path in sorted(tree)
        if re.search(r"(^|/)(tests?\.py|tests?/[A-Za-z]\w*\.py)$", path) and not path.endswith("/conftest.py")
    ]


@dataclass
class _Preparation:
    """One attempt to admit a checkout; its methods run in the order in which they stand."""

    checkout: Checkout
    backend: SandboxBackend
    settings: EnvironmentSettings
    limits: Limits
    logs: Path
    progress: Callable[[str], None]
    reference: str = ""
    build_key: str = ""
    options: str = ""
    variables: dict[str, str] = field(default_factory=dict)
    command: TestCommand | None = None

    def prepare(self, key: str) -> tuple[Environment, str]:
        tree, name = self.checkout.tree, self.checkout.name
        self.variables = import_variables(tree)
        self.command = read_test_command(self.checkout.spec, tree)
        if self.command is None:
            arguments = read_test_hint(self.checkout.spec.test, tree)
            self.options = arguments.options
            test_files = self._build_until_tests_are_found(arguments.roots)
        else:
            test_files = self.command.files
            self._build(read_dependencies(tree, name), (), "", 1)
        self._look_for_copies()
        test_files, baseline, excluded = self._baseline(test_files)
        self._plant(test_files, baseline)
        targets, calls = self._record(test_files) if self.command is None else ((), {})
        functions = (
            f"{len(targets)} functions"
            if self.command is None
            else "no functions (only pytest's tests tell what they call)"
        )
        self.progress(
            f"{name}: {len(baseline.passed)} tests in {len(test_files)} files, {functions}, {len(excluded)} ids excluded"
        )
        environment = Environment(
            key=key,
            reference=self.reference,
            repository=name,
            base_commit=self.checkout.commit,
            licence=self.checkout.licence,
            tree=tree,
            checkout=self.checkout,
            test_files=test_files,
            script=self._script(test_files),
            parser=self._parser,
            baseline=baseline,
            excluded_ids=excluded,
            targets=targets,
            calls=calls,
            variables=self.variables,
            options=self.options,
            command=self.command.command if self.command else "",
        )
        return environment, self.build_key

    # ---- building

    def _build_until_tests_are_found(self, roots: Sequence[str]) -> tuple[str, ...]:
        """Install what the metadata names; when collecting still lacks a known test library, add it and build again."""
        dependencies = read_dependencies(self.checkout.tree, self.checkout.name)
        extra: tuple[str, ...] = ()
        pytest = PYTEST
        for attempt in range(1, BUILD_ATTEMPTS + 1):
            self._build(dependencies, extra, pytest, attempt)
            test_files, log = self._collect(roots)
            before = (extra, pytest)
            extra = tuple(dict.fromkeys([*extra, *dependencies.wanted_by(log)]))
            pytest = (
                OLDER_PYTEST if "PluginValidationError" in log or "PytestRemovedIn9Warning" in log else pytest
            )
            if (extra, pytest) == before or self.checkout.spec.install is not None or self._is_image:
                break
        if not test_files:
            raise self._refused("no test was found", "collect", log)
        return test_files

    @property
    def _is_image(self) -> bool:
        return self.checkout.spec.kind == "docker"

    def _build(self, dependencies: Dependencies, extra: Sequence[str], pytest: str, attempt: int) -> None:
        spec = self.checkout.spec
        if self._is_image:
            if self.backend.name != "docker":
                raise EnvironmentBuildError(
                    f"{spec.text} needs sandbox.type = 'docker', not {self.backend.name!r}"
                )
            self.reference = spec.location.partition("#")[0]
            return
        script = build_script(
            dependencies, extra, spec.install, requirement_files(self.checkout.tree), pytest
        )
        identity = json.dumps([SCHEMA, script, self.backend.name, sys.version_info[:2]])
        self.build_key = hashlib.sha256(identity.encode()).hexdigest()[:32]
        if self.backend.environment_exists(self.build_key):
            self.reference = self.backend.environment_reference(self.build_key)
            return
        what = (
            ", ".join([*dependencies.runtime, *dependencies.test, *extra])
            if spec.install is None
            else spec.install
        )
        what = ", ".join(filter(None, (pytest, what)))
        self.progress(
            f"{self.checkout.name}: {f'installing {what}' if what else 'making an empty environment'}"
        )
        log = self.logs / f"build-{attempt}.log"
        try:
            self.reference = self.backend.build_environment(
                self.build_key, script, self.settings.build_timeout_s, log
            )
        except EnvironmentBuildError as error:
            raise EnvironmentBuildError(
                f"{self.checkout.name}: its dependencies cannot be installed (log: {log}). {error} "
                'Name what its tests need with the hint install="pip install …".',
                error.log_tail,
            ) from error

    # ---- running

    @contextmanager
    def _workspace(self, tree: Tree, variables: Mapping[str, str]) -> Iterator[Sandbox]:
        labels = {"run": "environment", "owner pid": str(os.getpid())}
        with self.backend.open(
            SandboxSpec(self.reference, self.limits, variables={**self.variables, **variables}, labels=labels)
        ) as box:
            box.write_archive(WORKSPACE, tree.to_tar())
            yield box

    def _script(self, test_files: Sequence[str]) -> str:
        return (
            command_script(self.command.command)
            if self.command
            else standard_script(test_files, self.options)
        )

    @property
    def _parser(self) -> str:
        return self.command.parser if self.command else standard_parser()

    def _run(self, tree: Tree, script: str, log_name: str, hash_seed: int = 0) -> ExecResult:
        with self._workspace(tree, {"PYTHONHASHSEED": str(hash_seed)}) as box:
            return self._execute(box, script, log_name)

    def _execute(self, box: Sandbox, script: str, log_name: str) -> ExecResult:
        box.write_archive("/tmp", Tree({"selfplay_script.sh": FileEntry(script.encode())}).to_tar())
        result = box.run("bash /tmp/selfplay_script.sh", self.settings.test_timeout_s, LOG_BYTES)
        (self.logs / f"{log_name}.log").write_bytes(result.output)
        if result.timed_out:
            remedy = 'raise environment.test_timeout_s, or choose fewer tests with the hint test="pytest …"'
            raise self._refused(
                f"its tests did not end within {self.settings.test_timeout_s:.0f} s; {remedy}",
                log_name,
                result.text,
            )
        return result

    def _outcomes(self, log: bytes) -> TestOutcomes:
        """What the parser makes of a log, in a sandbox that holds nothing else."""
        with self.backend.open(
            SandboxSpec(
                self.reference, self.limits, labels={"run": "environment", "owner pid": str(os.getpid())}
            )
        ) as box:
            box.write_archive("/tmp", Tree({"test_parser.py": FileEntry(self._parser.encode())}).to_tar())
            result = box.run(
                "python3 /tmp/test_parser.py", self.settings.test_timeout_s, LOG_BYTES * 2, stdin=log
            )
        try:
            return parse_outcomes(result.output, MAX_TEST_IDS)
        except OutcomesError as error:
            raise EnvironmentBuildError(
                f"{self.checkout.name}: its test log cannot be read: {error}", result.text[-LOG_TAIL:]
            ) from error

    def _refused(self, reason: str, log_name: str, log: str) -> EnvironmentBuildError:
        return EnvironmentBuildError(
            f"{self.checkout.name}: {reason}. Log: {self.logs / log_name}.log", log[-LOG_TAIL:]
        )

    # ---- admitting

    def _collect(self, roots: Sequence[str]) -> tuple[tuple[str, ...], str]:
        """The files in which pytest finds tests, and its log."""
        tree, log = self.checkout.tree, ""
        for names in (roots, _likely_test_files(tree)):
            script = (
                f"cd {WORKSPACE} && python -m pytest {COLLECT_OPTIONS} {self.options} {shlex.join(names)}\n"
            )
            log = self._run(tree, script, "collect").text
            found = {line.partition("::")[0] for line in log.splitlines() if "::" in line}
            files = tuple(
                sorted(
                    path
                    for path in found
                    if path in tree and path.endswith(".py") and not path.startswith("-")
                )
            )
            if files or roots:
                return files, log
        return (), log

    def _look_for_copies(self) -> None:
        tree = self.checkout.tree
        suffixes = (".py",) if self.command is None else (".py", *OTHER_CODE)
        probe = PROBE.replace('".py"', repr(suffixes))
        hashes = {}
        for path in tree:
            content = tree[path].content
            if (
                path.endswith(suffixes)
                and len(content) >= CHEAP_BYTES
                and not re.search(r"(^|/)_?(vendor|vendored|extern)/", path)
            ):
                hashes[(len(content), hashlib.sha256(content).hexdigest())] = path
        with self._workspace(Tree(), {"PYTHONPATH": ""}) as box:
            result = box.run(
                f"python3 -c {shlex.quote(probe)}",
                self.settings.test_timeout_s,
                stdin=json.dumps(list(hashes)).encode(),
            )
        try:
            seen = json.loads(result.output.splitlines()[-1])
            copies, python, has_hypothesis = seen["copies"], seen["python"], seen["hypothesis"]
        except (ValueError, IndexError, KeyError, TypeError) as error:
            raise EnvironmentBuildError(
                f"{self.checkout.name}: python does not run in its environment", result.text[-LOG_TAIL:]
            ) from error
        if copies:
            shown = ", ".join(map(str, copies[:5]))
            remedy = 'Name dependencies that do not bring it along with the hint install="pip install …".'
            if self._is_image:
                remedy = f"The workspace covers only {WORKSPACE}: make an image that holds the repository there and nowhere else."
            raise EnvironmentBuildError(
                f"{self.checkout.name}: {len(copies)} of its source files also lie outside the workspace, so a repair could be copied: "
                f"{shown}. {remedy}"
            )
        wanted = self.checkout.spec.python
        if wanted and wanted != python:
            raise EnvironmentBuildError(
                f"{self.checkout.name}: python={wanted} is asked for, and {self.backend.name} sandboxes have Python {python} here. "
                f"Leave the hint out, run selfplay with Python {wanted}, or give an image: docker:IMAGE:TAG#/FOLDER."
            )
        if has_hypothesis and "--hypothesis" not in self.options:
            self.options += (
                " --hypothesis-profile=ci"  # the same examples every time, no deadlines, no database
            )

    def _baseline(self, test_files: tuple[str, ...]) -> tuple[tuple[str, ...], TestOutcomes, frozenset[str]]:
        """Equal runs under different hash seeds. Files in which nothing passes are dropped, other ids excluded one by one."""
        tree = self.checkout.tree
        runs: list[TestOutcomes] = []
        seen: set[str] = set()
        while len(runs) < self.settings.baselines:
            number = len(runs)
            self.progress(f"{self.checkout.name}: baseline {number + 1} of {self.settings.baselines}")
            log_name = f"baseline-{number + 1}"
            result = self._run(tree, self._script(test_files), log_name, hash_seed=number)
            outcomes = self._outcomes(result.output)
            seen |= outcomes.ids
            if not outcomes.passed:
                raise self._refused("no test passes", log_name, result.text)
            useful = self._files_of(outcomes.passed, test_files)
            if number == 0 and useful != test_files:
                test_files = useful
                continue  # the files that stay are run again, since tests of one process may lean on each other
            runs.append(outcomes)
        stable = frozenset.intersection(*(run.passed for run in runs)) - frozenset().union(
            *(run.failed for run in runs)
        )
        stable = frozenset(
            name for name in stable if not UNSTABLE_ID.search(name) and (self.command or " - " not in name)
        )
        test_files = self._files_of(stable, test_files)
        if not stable:
            raise self._refused(f"no test passes in all of {len(runs)} runs", "baseline-1", "")
        return test_files, TestOutcomes(stable, frozenset()), frozenset(seen) - stable

    def _files_of(self, test_ids: Collection[str], test_files: tuple[str, ...]) -> tuple[str, ...]:
        """The test files that `test_ids` name; all of them where ids do not begin with a file."""
        if self.command:
            return test_files
        return tuple(path for path in test_files if any(name.startswith(f"{path}::") for name in test_ids))

    def _plant(self, test_files: tuple[str, ...], baseline: TestOutcomes) -> None:
        """With a `raise` in every module the tests must fail; where they pass, the package comes from somewhere else.

        Where a command runs the tests, other languages' files are replaced by what none can read: tests that need them fail too.
        """
        tree = self.checkout.tree
        sources = _source_files(tree)
        if self.command is not None:
            sources = [
                path for path in sorted(tree) if not is_protected_path(path, tree) and path not in test_files
            ]
            sources = [path for path in sources if path.endswith(".py") or is_other_code(path)] or sources
        broken = tree.replace({path: _planted(path, tree[path]) for path in sources})
        result = self._run(broken, self._script(test_files), "planted")
        still = self._outcomes(result.output).passed & baseline.passed
        if 2 * len(still) > len(baseline.passed):
            raise self._refused(
                f"{len(still)} of {len(baseline.passed)} tests still pass with each of its {len(sources)} code files made unusable: "
                "the package is imported from elsewhere, or the tests do not test it",
                "planted",
                result.text,
            )

    def _record(self, test_files: Collection[str]) -> tuple[tuple[Target, ...], Calls]:
        """Run the suite once more under the call recorder."""
        plugin = Tree(
            {"recorder/selfplay_call_recorder.py": FileEntry(shipped_text("call_recorder.py").encode())}
        )
        variables = {
            "PYTEST_PLUGINS": "selfplay_call_recorder",
            "PYTHONPATH": f"/tmp/recorder:{self.variables['PYTHONPATH']}",
            "PYTHONHASHSEED": "0",
        }
        with self._workspace(self.checkout.tree, variables) as box:
            box.write_archive("/tmp", plugin.to_tar())
            self._execute(box, standard_script(sorted(test_files), self.options), "recorded")
            archive = Tree.from_tar(box.read_archive("/submit", self.limits.submit_bytes + (1 << 20)))
        record: Any = None
        with contextlib.suppress(KeyError, ValueError, RecursionError):
            record = json.loads(archive["calls.json"].content)
        seen = read_calls(record)
        return find_targets(self.checkout.tree, seen.files, test_files), find_calls(
            self.checkout.tree, seen.tests
        )
