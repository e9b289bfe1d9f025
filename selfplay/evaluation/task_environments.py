"""Environments for tasks. A record without an artifact brings its own tests, so its repository is not
admitted.

A task of selfplay plays in an admitted environment (`repositories.prepare`). For a record of the field, the
dependencies are installed for its commit, or its Docker image is used; whether its tests then do what it says
is left to `checks`. Invariant: a task whose repository cannot be had is named with its reason and left out.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from selfplay.errors import (
    ArtifactError,
    EnvironmentBuildError,
    MissingPythonError,
    PatchError,
    PrerequisiteError,
    RepositoryError,
    SandboxUnavailable,
    UsageError,
)
from selfplay.evaluation.record_bugs import repaired_tree
from selfplay.evaluation.record_images import CONDA, VENVS, LaidOut, activation, lay_out, pull_image
from selfplay.evaluation.tasks import Task
from selfplay.outcomes import TestOutcomes
from selfplay.repositories.build import BUILD_ATTEMPTS, adapted, first_requirements, project_names
from selfplay.repositories.checkouts import Checkout, cache_root
from selfplay.repositories.environment import SCHEMA, Environment
from selfplay.repositories.fetching import fetch
from selfplay.repositories.hiding import hide_all, refuse_copies
from selfplay.repositories.installation import Requirements, install
from selfplay.repositories.probe import PROBE, refuse_other_python, run_probe
from selfplay.repositories.scripts import RECORDS_IDS, command_script, standard_parser, standard_script
from selfplay.repositories.side_by_side import in_order
from selfplay.repositories.specs import RepositorySpec, absolute_line, parse_spec
from selfplay.repositories.suites import collect
from selfplay.repositories.test_hints import PytestArguments, read_pytest_hint, read_test_command
from selfplay.repositories.trial import BuildJob, Trial, import_variables
from selfplay.source.trees import Tree

if TYPE_CHECKING:
    from selfplay.repositories.prepare import Preparer

LOOK_TIMEOUT_S = 60.0
# SandboxUnavailable: the image may lack what a sandbox needs. If the machine is at fault, building fails too.
IMAGE_FAULTS = (RepositoryError, EnvironmentBuildError, PrerequisiteError, UsageError, SandboxUnavailable)


@dataclass(frozen=True)
class Prepared:
    """environments: by the tasks' `repo`. left_out: why, by the ids of tasks that have none."""

    environments: Mapping[str, Environment]
    left_out: Mapping[str, str]


def prepare_tasks(
    tasks: Sequence[Task],
    preparer: Preparer,
    clones: Path | None = None,
    known: Mapping[str, Environment] = MappingProxyType({}),
) -> Prepared:
    """The environments of all tasks that can have one.

    clones: a folder of clones; a repository in it is not fetched. known: environments that exist already, by
    absolute line. Raises SandboxUnavailable and DiskFullError if the machine fails.
    """
    first: dict[str, Task] = {}  # of each repository
    for task in tasks:
        if not task.setup.left_out:
            first.setdefault(task.repo, task)
    plain = [
        line for line, task in first.items() if task.artifact and absolute_line(parse_spec(line)) not in known
    ]
    admitted = dict(zip(plain, preparer.prepare_each([*map(parse_spec, plain)]), strict=True))
    records = [task for task in first.values() if not task.artifact]
    prepared = in_order(
        records,
        lambda task: parse_spec(task.repo).name,
        lambda task, report: _prepare_record(task, preparer, clones, report),
        preparer.console,
    )
    found = {task.repo: result for task, result in zip(records, prepared, strict=True)}
    environments: dict[str, Environment] = {}
    left_out: dict[str, str] = {}
    for line, task in first.items():
        if task.artifact:
            environment = admitted.get(line) or known.get(absolute_line(parse_spec(line)))
            reason = f"its repository {line} does not run here (see above)"
        else:
            environment, reason = found[line]
        if environment is None:
            left_out[line] = reason
        else:
            environments[line] = environment
    reasons = {
        task.instance_id: task.setup.left_out or left_out[task.repo]
        for task in tasks
        if task.setup.left_out or task.repo in left_out
    }
    return Prepared(environments, reasons)


def _prepare_record(
    task: Task, preparer: Preparer, clones: Path | None, report: Callable[[str], None]
) -> tuple[Environment | None, str]:
    """The environment of a record without an artifact, or the reason why there is none."""
    spec = parse_spec(task.repo)
    problems: list[str] = []

    def job_of(source: RepositorySpec) -> BuildJob:
        checkout = replace(fetch(source, cache_root()), name=spec.name)
        logs = cache_root() / "logs" / f"{checkout.name}-{checkout.tree.digest[:12]}"
        logs.mkdir(parents=True, exist_ok=True)
        settings = preparer.config.environment
        return BuildJob(checkout, preparer.backend, settings, preparer.limits, logs, report)

    if preparer.backend.capabilities.opens_images:
        for image in task.setup.images:
            try:
                return _of_record_image(image, task, spec, preparer, job_of), ""
            except IMAGE_FAULTS as error:
                problems.append(f"the image {image} is not used: {error}")
        for problem in problems if len(problems) == 1 else ():
            preparer.console.print(problem, markup=False, highlight=False)
    if task.setup.image_only:
        return None, problems[
            0
        ] if problems else "it runs in a Docker image only: set sandbox.type = 'docker'"
    try:
        return _of_commit(job_of(_clone_of(spec, clones) if clones else spec), task), ""
    except (RepositoryError, EnvironmentBuildError) as error:
        if isinstance(error, MissingPythonError) and task.setup.images and not problems:
            problems.append(f"set sandbox.type = 'docker' to use the record's image {task.setup.images[0]}")
        return None, "; ".join([*problems[:1], str(error)])


def _of_record_image(
    image: str,
    task: Task,
    spec: RepositorySpec,
    preparer: Preparer,
    job_of: Callable[[RepositorySpec], BuildJob],
) -> Environment:
    """Raises an error of IMAGE_FAULTS if the image cannot be used."""

    def say(text: str) -> None:
        preparer.console.print(text, markup=False, highlight=False)

    pull_image(image, say)
    # SWE-smith's images hold a copy of the project, whose only commit has another name.
    commits = [spec.rev or "HEAD", *(["HEAD"] if task.setup.patch_is_bug else [])]
    laid_out = lay_out(image, commits, task.setup.folder)
    for note in laid_out.notes:
        say(f"  {task.instance_id}: {note}")
    job = job_of(parse_spec(laid_out.source))
    tree = job.checkout.tree
    try:
        hidden = tree if task.setup.patch_is_bug else repaired_tree(task, tree)
    except (PatchError, ArtifactError) as error:
        raise RepositoryError(f"the record does not fit the image's files: {error}") from error
    return _of_image(job, laid_out, hidden)


def _clone_of(spec: RepositorySpec, clones: Path) -> RepositorySpec:
    """The spec with a clone below `clones` in place of its URL: OWNER/NAME, OWNER__NAME or NAME.

    The spec as it is if there is none.
    """
    if spec.kind != "git":
        return spec
    owner, name = spec.location.removesuffix(".git").rstrip("/").split("/")[-2:]
    for folder in (clones / owner / name, clones / f"{owner}__{name}", clones / name):
        for found in (folder, folder.with_name(f"{folder.name}.git")):
            if found.is_dir():
                return replace(spec, kind="path", location=str(found.absolute()))
    return spec


# ---- from a commit


def _of_commit(job: BuildJob, task: Task) -> Environment:
    """Install what the commit's tests need. Raises EnvironmentBuildError."""
    checkout, setup = job.checkout, task.setup
    if setup.python and checkout.spec.python is None:
        checkout = replace(checkout, spec=replace(checkout.spec, python=setup.python))
        job = replace(job, checkout=checkout)
    command = read_test_command(checkout.spec, checkout.tree)
    if job.is_image:
        if not job.backend.capabilities.opens_images:
            text, kind = checkout.spec.text, job.backend.name
            raise EnvironmentBuildError(f"{text} needs sandbox.type = 'docker', not {kind!r}")
        image = checkout.spec.location.partition("#")[0]
        environment = _of_image(job, LaidOut(image, checkout.spec.text), checkout.tree)
    else:
        wanted = replace(first_requirements(job), extra=setup.packages)
        if setup.test:
            wanted = replace(wanted, pytest="")
        installed = _installed(job, wanted, task)
        variables = import_variables(checkout.tree)
        environment = _environment(
            checkout, installed.reference, variables, installed.options, installed.hidden
        )
    if command is None:
        return environment
    script = command_script(command.command)
    return replace(environment, command=command.command, parser=command.parser, script=script)


def _test_files(task: Task, tree: Tree) -> list[str]:
    """The files that the ids of the record name, and the commit has."""
    named = {test_id.partition("::")[0] for test_id in (*task.fail_to_pass, *task.pass_to_pass)}
    return sorted(path for path in named if path in tree)


@dataclass(frozen=True)
class _Installed:
    """Dependencies that were installed and looked at. options: of pytest; hidden: as `Environment.hidden`."""

    reference: str
    options: str
    hidden: tuple[str, ...]


def _installed(job: BuildJob, wanted: Requirements, task: Task) -> _Installed:
    """Install `wanted` and what the task's tests ask for, or find that it was done before.

    Raises EnvironmentBuildError.
    """
    checkout, backend = job.checkout, job.backend
    spec, files = checkout.spec, _test_files(task, job.checkout.tree)
    identity = [
        SCHEMA,
        checkout.tree.digest,
        repr(wanted),
        files,
        spec.python,
        spec.install,
        backend.name,
        PROBE,
    ]
    key = hashlib.sha256(json.dumps([*identity, sys.version_info[:2]]).encode()).hexdigest()[:32]
    facts = cache_root() / "environments" / "records" / f"{key}.json"
    with contextlib.suppress(OSError, ValueError, LookupError):
        known = json.loads(facts.read_text(encoding="utf-8"))
        if backend.environment_exists(known["build_key"]):
            reference = backend.environment_reference(known["build_key"])
            return _Installed(reference, known["options"], tuple(known["hidden"]))
    arguments = _arguments(checkout)
    wanted = replace(wanted, extra=(*wanted.extra, *arguments.missing_in(wanted.dependencies)))
    has_odd_ids = False
    for attempt in range(1, BUILD_ATTEMPTS + 1):
        installation = install(job, wanted, attempt)
        trial = Trial(job, installation.reference, import_variables(checkout.tree))
        before = wanted
        if files and wanted.pytest:
            collected, arguments = collect(trial, replace(arguments, roots=tuple(files)))
            wanted, has_odd_ids = adapted(wanted, collected.log), collected.has_odd_ids
        if wanted == before or spec.install is not None:
            break
    seen = run_probe(trial, (".py",), project_names(checkout))
    refuse_copies(job, seen)
    refuse_other_python(job, seen.python)
    hidden = hide_all(seen).paths
    options = _options(arguments, has_odd_ids, seen.has_hypothesis)
    facts.parent.mkdir(parents=True, exist_ok=True)
    partial = facts.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(
        json.dumps({"build_key": installation.build_key, "options": options, "hidden": hidden}),
        encoding="utf-8",
    )
    partial.rename(facts)
    return _Installed(installation.reference, options, hidden)


def _arguments(checkout: Checkout) -> PytestArguments:
    """How pytest is called. With a parser, the hint is a command of its own and none of pytest's."""
    return read_pytest_hint(None if checkout.spec.parser else checkout.spec.test, checkout.tree)


def _options(arguments: PytestArguments, has_odd_ids: bool, has_hypothesis: bool) -> str:
    """The options of a run: ids in full if pytest's summary cannot carry one, hypothesis' fixed examples."""
    options = arguments.options
    if has_hypothesis and "--hypothesis-profile" not in options:
        options += " --hypothesis-profile=ci"
    return f"{options} {RECORDS_IDS}" if has_odd_ids else options


def _environment(
    checkout: Checkout,
    reference: str,
    variables: Mapping[str, str],
    options: str,
    hidden: tuple[str, ...],
) -> Environment:
    """An environment that was not admitted: no baseline, no excluded tests, no targets."""
    decides = [checkout.tree.digest, reference, options, dict(variables), hidden]
    identity = json.dumps(["record", SCHEMA, *decides])
    return Environment(
        key=hashlib.sha256(identity.encode()).hexdigest()[:32],
        reference=reference,
        repository=checkout.name,
        base_commit=checkout.commit,
        licence=checkout.licence,
        tree=checkout.tree,
        checkout=checkout,
        test_files=(),
        script=standard_script((), options),
        parser=standard_parser(options),
        baseline=TestOutcomes(),
        excluded_ids=frozenset(),
        targets=(),
        calls={},
        variables=variables,
        options=options,
        hidden=hidden,
    )


# ---- from an image


def _of_image(job: BuildJob, laid_out: LaidOut, hidden: Tree) -> Environment:
    """The record's image, with the environment of its tests active if it has one.

    hidden: the repaired tree, with the record's tests. Raises EnvironmentBuildError if no Python runs in the
    image, or if files of the repository or of `hidden` also lie outside the workspace: a solver would find
    the repair there.
    """
    image, variables = laid_out.image, import_variables(job.checkout.tree)
    look = (
        f"for folder in {shlex.join([*CONDA, *VENVS])}; do test -x $folder/bin/python && echo $folder; done"
    )
    with Trial(job, image, variables).workspace(Tree(), {}) as box:
        found = box.run(f"{look}; true", LOOK_TIMEOUT_S).text.split()
    variables |= activation([folder for folder in found if folder in (*CONDA, *VENVS)], laid_out.path)
    trial, names = Trial(job, image, variables), project_names(job.checkout)
    seen = [run_probe(trial, (".py",), names), run_probe(trial, (".py",), names, hidden)]
    for found_copies in seen:
        refuse_copies(job, found_copies)
    options = _options(_arguments(job.checkout), False, seen[0].has_hypothesis)
    unseen = tuple(sorted({path for found_copies in seen for path in hide_all(found_copies).paths}))
    environment = _environment(job.checkout, image, variables, options, unseen)
    return replace(environment, beside=laid_out.beside)
