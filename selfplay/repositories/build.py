"""Turns a checkout into an environment: installs its dependencies, runs its tests, admits it or says why not.

The steps are modules of their own: `installation`, `suites`, `probe`, `admission`, `recording`. This one has
their order, and the key under which the result is cached.

Invariants: an environment is cached only after it was admitted, a refusal only if it would repeat. The key
covers everything that decides the result, so an environment from the cache is the one that a build would
give.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name

from selfplay.errors import EnvironmentBuildError, full_disk_reported
from selfplay.parts import is_own
from selfplay.repositories.admission import Baseline, check_planted_error, hide_and_take_baseline
from selfplay.repositories.backend_metadata import ask_backend
from selfplay.repositories.cache import Reading, read_facts, write_facts
from selfplay.repositories.checkouts import Checkout
from selfplay.repositories.dependencies import read_dependencies
from selfplay.repositories.environment import SCHEMA, Environment
from selfplay.repositories.hiding import refuse_copies
from selfplay.repositories.installation import (
    OLDER_PYTEST,
    PYTEST,
    Installation,
    Requirements,
    build_key_of,
    build_script,
    install,
    pytest_for,
)
from selfplay.repositories.locks import locked
from selfplay.repositories.probe import PROBE, refuse_other_python, run_probe
from selfplay.repositories.recording import Recorded, record_run
from selfplay.repositories.refusals import SUFFIX, conditions_of, read_refusal, write_refusal
from selfplay.repositories.requirement_text import requirement_files
from selfplay.repositories.scripts import TEXTS, shipped_text
from selfplay.repositories.suites import Suite, collect, pytest_suite
from selfplay.repositories.test_hints import (
    PARSERS,
    parser_program,
    read_pytest_hint,
    read_test_command,
    shipped_parser,
)
from selfplay.repositories.trial import BuildJob, Trial, import_variables
from selfplay.repositories.versions import takes_version_from_tags
from selfplay.sandbox.base import Limits, SandboxBackend
from selfplay.source.import_roots import Project, renamed_packages

if TYPE_CHECKING:
    from selfplay.settings.playing import EnvironmentSettings

BUILD_ATTEMPTS = 3
BENCHMARK = "pytest-benchmark"


def prepare_environment(
    checkout: Checkout,
    backend: SandboxBackend,
    settings: EnvironmentSettings,
    limits: Limits,
    cache: Path,
    progress: Callable[[str], None],
) -> Environment:
    """Find the checkout's environment in the cache, or build and admit it.

    progress: takes a line for the person who waits, for each step.
    Raises EnvironmentBuildError, which names the repository, the reason and the log, if it is not admitted;
    SandboxUnavailable and DiskFullError if the machine fails.
    """
    key = _environment_key(checkout, backend, settings)
    reading = _read(checkout, backend)
    facts = cache / "environments" / "facts" / f"{key}.json"
    found = read_facts(facts, checkout, backend, reading)
    if found is not None:
        return found
    logs = cache / "logs" / f"{checkout.name}-{key[:12]}"
    job = BuildJob(checkout, backend, settings, limits, logs, progress)
    with full_disk_reported(cache), locked(facts.with_suffix(".lock")):
        found = read_facts(facts, checkout, backend, reading)  # another process may have built it meanwhile
        if found is None:
            with _known_refusals(facts.with_suffix(SUFFIX), job, reading):
                logs.mkdir(parents=True, exist_ok=True)
                found, build_key = _build(job, key)
            write_facts(facts, found, build_key, reading)
        return found


@contextmanager
def _known_refusals(path: Path, job: BuildJob, reading: Reading) -> Iterator[None]:
    """Raise the refusal that is known, else run the body and keep the one that it raises."""
    conditions = conditions_of(job, reading)
    known = None if job.is_image else read_refusal(path, conditions)
    if known is not None:
        raise known
    try:
        yield
    except EnvironmentBuildError as error:
        if not job.is_image and not error.of_machine:
            write_refusal(path, error, conditions)
        raise


def _environment_key(checkout: Checkout, backend: SandboxBackend, settings: EnvironmentSettings) -> str:
    """A hash of the tree, the hints, the backend, the time of a run, and what selfplay adds."""
    spec = checkout.spec
    recipe = [shipped_text(name) for name in TEXTS]
    parts = [
        SCHEMA,
        checkout.tree.digest,
        spec.python,
        spec.install,
        spec.test,
        backend.name,
        settings.baselines,
        float(settings.test_timeout_s),  # a default of 90 is 90.0 in the stored configuration
        PYTEST,
        OLDER_PYTEST,
        PROBE,
        *recipe,
    ]
    parts += [spec.location] if spec.kind == "docker" else []
    if checkout.tag_version and takes_version_from_tags(Project(checkout.tree, "")):
        parts += ["version", checkout.tag_version]
    if spec.parser is not None:
        parts += ["parser", spec.parser, *(shipped_parser(name) for name in PARSERS)]
        if is_own(spec.parser):
            parts.append(parser_program(spec.parser))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _read(checkout: Checkout, backend: SandboxBackend) -> Reading:
    """What the files of a checkout say today about its environment."""
    requirements = _stated_requirements(checkout)
    spec = checkout.spec
    script = build_script(requirements, spec.install, requirement_files(checkout.tree))
    return Reading(
        requirements.dependencies, import_variables(checkout.tree), build_key_of(script, backend, spec.python)
    )


def project_names(checkout: Checkout) -> list[str]:
    """The names under which the repository's projects are installed, in their canonical form."""
    spec = checkout.spec
    found = read_dependencies(checkout.tree, checkout.name, checkout.tag_version, python=spec.python)
    return sorted({canonicalize_name(name) for name in (found.name, *(name for name, _ in found.others))})


def _stated_requirements(checkout: Checkout, metadata: str = "") -> Requirements:
    """What to install before anything was tried. metadata: of the build backend, if it was asked."""
    python = checkout.spec.python
    found = read_dependencies(checkout.tree, checkout.name, checkout.tag_version, metadata, python)
    is_command = read_test_command(checkout.spec, checkout.tree) is not None
    renamed = tuple(sorted(renamed_packages(checkout.tree).items()))
    return Requirements(found, pytest="" if is_command else pytest_for(python), renamed=renamed)


def first_requirements(job: BuildJob) -> Requirements:
    """What to install first. Asks the build backend for what the files do not state."""
    requirements = _stated_requirements(job.checkout)
    if not requirements.dependencies.unread or job.is_image or job.checkout.spec.install is not None:
        return requirements
    return _stated_requirements(job.checkout, ask_backend(job))


def _build(job: BuildJob, key: str) -> tuple[Environment, str]:
    """Build and admit an environment. Returns it with the key of its installation."""
    checkout = job.checkout
    variables = import_variables(checkout.tree)
    command = read_test_command(checkout.spec, checkout.tree)
    if command is None:
        suite, installation = _install_until_tests_are_found(job, variables)
    else:
        suite = Suite(command.files, command=command)
        installation = install(job, first_requirements(job), 1)
    trial = Trial(job, installation.reference, variables)
    seen = run_probe(trial, suite.code_suffixes, project_names(checkout))
    refuse_copies(job, seen)
    refuse_other_python(job, seen.python)
    if seen.has_hypothesis and "--hypothesis-profile" not in suite.options:
        # The same examples in every run, no deadlines, no database.
        suite = replace(suite, options=f"{suite.options} --hypothesis-profile=ci")
    trial, suite, baseline, hiding = hide_and_take_baseline(trial, suite, seen)
    check_planted_error(trial, suite, baseline)
    left_out = (*_stated_requirements(checkout).dependencies.urls, *installation.left_out)
    environment = _environment(trial, suite, baseline, key)
    environment = replace(environment, left_out=left_out, hidden=hiding.paths, copied=hiding.copied)
    functions = (
        f"{len(environment.targets)} functions"
        if suite.command is None
        else "no functions (calls are recorded with pytest only)"
    )
    job.report(
        f"{len(baseline.outcomes.passed)} tests in {len(suite.files)} files, {functions}, "
        f"{len(baseline.excluded_ids)} ids excluded"
    )
    return environment, installation.build_key


def _install_until_tests_are_found(job: BuildJob, variables: dict[str, str]) -> tuple[Suite, Installation]:
    """Install the dependencies that the metadata names, and collect the tests.

    If a known test library is missing, add it and install again, at most BUILD_ATTEMPTS times.
    """
    checkout = job.checkout
    arguments = read_pytest_hint(checkout.spec.test, checkout.tree)
    requirements = first_requirements(job)
    requirements = replace(requirements, extra=arguments.missing_in(requirements.dependencies))
    for attempt in range(1, BUILD_ATTEMPTS + 1):
        installation = install(job, requirements, attempt)
        trial = Trial(job, installation.reference, variables)
        if requirements.names(BENCHMARK):  # a function once, in place of many times for its speed
            arguments = arguments.with_own(("--benchmark-disable",))
        collected, called = collect(trial, arguments)
        before = requirements
        requirements = adapted(requirements, collected.log)
        if requirements == before or checkout.spec.install is not None or job.is_image:
            break
    return pytest_suite(job, collected, called, requirements.dependencies), installation


def adapted(requirements: Requirements, log: str) -> Requirements:
    """The requirements, with the test libraries and the pytest that the log of a collection asks for."""
    extra = dict.fromkeys([*requirements.extra, *requirements.dependencies.wanted_by(log)])
    is_too_new = "PluginValidationError" in log or "PytestRemovedIn9Warning" in log
    older = is_too_new and requirements.pytest == PYTEST
    return replace(requirements, extra=tuple(extra), pytest=OLDER_PYTEST if older else requirements.pytest)


def _environment(trial: Trial, suite: Suite, baseline: Baseline, key: str) -> Environment:
    """The admitted environment, with what a recorded run shows if pytest runs its tests."""
    checkout = trial.job.checkout
    recorded = record_run(trial, suite) if suite.command is None else Recorded()
    return Environment(
        key=key,
        reference=trial.reference,
        repository=checkout.name,
        base_commit=checkout.commit,
        licence=checkout.licence,
        tree=checkout.tree,
        checkout=checkout,
        test_files=suite.files,
        script=suite.script,
        parser=suite.parser,
        baseline=baseline.outcomes,
        excluded_ids=baseline.excluded_ids,
        targets=recorded.targets,
        calls=recorded.calls,
        material=recorded.material,
        variables=trial.variables,
        options=suite.options,
        command="" if suite.command is None else suite.command.command,
        notes=suite.notes,
    )
