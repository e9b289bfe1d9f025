"""A record that names a Docker image is played in it, with SWE-bench's conda environment active."""

import io
import tarfile

import docker
import pytest
from field_records import NAME, OWNER, git, make_clones, swe_bench_record
from rich.console import Console

from machine import open_or_skip
from selfplay.agent.workspaces import sandbox_limits
from selfplay.config import build_config
from selfplay.evaluation.checks import Checker
from selfplay.evaluation.record_images import CONDA
from selfplay.evaluation.task_environments import prepare_tasks
from selfplay.evaluation.tasks import parse_task
from selfplay.repositories.environment import open_workspace
from selfplay.repositories.prepare import Preparer
from selfplay.verdicts.grading import grade
from selfplay.verdicts.test_runs import TestRunner

pytestmark = [pytest.mark.sandbox, pytest.mark.slow]
CONFIG = build_config({})
IMAGE = "selfplay-test/tiny-record:1"
# Python with pytest is found in the conda environment alone.
DOCKERFILE = f"""FROM @BASE@
USER root
COPY repository /testbed
RUN mkdir -p {CONDA[0]} && mv /opt/env /opt/moved && mkdir -p {CONDA[0]}/bin \\
 && printf '#!/bin/sh\\nexec /opt/moved/bin/python "$@"\\n' > {CONDA[0]}/bin/python \\
 && chmod 755 {CONDA[0]}/bin/python
"""


@pytest.fixture(scope="module")
def backend(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFPLAY_CACHE", str(folder))
        yield open_or_skip("docker", folder)


@pytest.fixture(scope="module")
def clones(tmp_path_factory):
    return make_clones(tmp_path_factory.mktemp("clones"))


def prepare(tasks, backend, clones, console=None):
    console = console or Console(file=io.StringIO())
    preparer = Preparer(backend, CONFIG, sandbox_limits(CONFIG), console)
    return prepare_tasks(tasks, preparer, clones)


@pytest.fixture(scope="module")
def image(backend, clones, tmp_path_factory):
    """An image as SWE-bench builds them: the repository at its commit, Python in a conda environment."""
    record = swe_bench_record(clones)
    prepared = prepare([parse_task({**record, "image_name": ""})], backend, clones)
    (environment,) = prepared.environments.values()
    folder = tmp_path_factory.mktemp("image")
    git(clones / OWNER / NAME, "worktree", "add", str(folder / "repository"), record["base_commit"])
    (folder / "Dockerfile").write_text(DOCKERFILE.replace("@BASE@", environment.reference))
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        tar.add(folder, ".")
    client = docker.from_env()
    client.images.build(fileobj=io.BytesIO(context.getvalue()), custom_context=True, tag=IMAGE, rm=True)
    yield IMAGE
    client.images.remove(IMAGE, force=True)
    client.close()


def test_a_record_is_played_in_its_image_with_the_conda_environment(image, backend, clones, tmp_path):
    task = parse_task(swe_bench_record(clones, image_name=image))
    prepared = prepare([task], backend, tmp_path)  # without clones: the image has everything
    environment = prepared.environments[task.repo]
    assert environment.reference.startswith("selfplay/record:")
    runner = TestRunner(backend, CONFIG.validator, sandbox_limits(CONFIG), {})
    checked = Checker(runner).check([task], prepared.environments)
    assert checked.left_out == {}
    environment, bug = checked.bugs[task.instance_id]
    with open_workspace(backend, environment, environment.tree, {}) as box:
        assert box.run("command -v python; echo $CONDA_DEFAULT_ENV", 60).text.split() == [
            f"{CONDA[0]}/bin/python",
            "testbed",
        ]
    assert grade(bug, task.patch, environment, runner).passed
    assert not grade(bug, "", environment, runner).passed


def test_a_record_of_another_language_is_graded_with_its_own_command_and_parser(image, backend, clones):
    """The command prints what `go test -v` does."""
    program = (
        "from tiny.numbers import digits, mean\nfor name, test in (('TestDigits', lambda: digits(-12)), "
    )
    program += (
        "('TestMean', lambda: mean([1]))):\n    try:\n        test()\n        print('--- PASS:', name)\n"
    )
    program += "    except ValueError:\n        print('--- FAIL:', name)\n"
    config = {"test_cmd": f"python - <<'END'\n{program}END", "log_parser": "parse_log_gotest"}
    record = swe_bench_record(clones, image_name=image, language="go", install_config=config)
    task = parse_task({**record, "FAIL_TO_PASS": ["TestDigits"], "PASS_TO_PASS": ["TestMean"]})
    runner = TestRunner(backend, CONFIG.validator, sandbox_limits(CONFIG), {})
    checked = Checker(runner).check([task], prepare([task], backend, clones).environments)
    assert checked.left_out == {}
    environment, bug = checked.bugs[task.instance_id]
    assert grade(bug, task.patch, environment, runner).passed
    assert not grade(bug, "", environment, runner).passed


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        # Such a folder may hold the project's history, and so the repair.
        ("cp -r /testbed /app", "source files also lie outside the workspace"),
        ("rm -f /bin/python3 /usr/bin/python3 /usr/local/bin/python3", "needs bash and python3"),
    ],
)
def test_an_image_that_does_not_suit_is_not_used_and_the_reason_is_said(
    change, reason, image, backend, clones
):
    context, client = io.BytesIO(), docker.from_env()
    with tarfile.open(fileobj=context, mode="w") as tar:
        text = f"FROM {image}\nUSER root\nRUN {change}\n".encode()
        entry = tarfile.TarInfo("Dockerfile")
        entry.size = len(text)
        tar.addfile(entry, io.BytesIO(text))
    changed = f"{IMAGE}-changed"
    client.images.build(fileobj=io.BytesIO(context.getvalue()), custom_context=True, tag=changed, rm=True)
    try:
        task = parse_task(swe_bench_record(clones, image_name=changed))
        said = io.StringIO()
        prepared = prepare([task], backend, clones, Console(file=said, width=1000))
        assert prepared.environments[task.repo].reference.startswith("selfplay/env:")
        assert f"the image {changed} is not used" in said.getvalue() and reason in said.getvalue()
    finally:
        client.images.remove(changed, force=True)
        client.close()


def test_without_its_image_a_record_is_built_from_its_commit(backend, clones):
    task = parse_task(swe_bench_record(clones, image_name="nowhere.invalid/tiny:1"))
    prepared = prepare([task], backend, clones)
    assert prepared.environments[task.repo].reference.startswith("selfplay/env:")
