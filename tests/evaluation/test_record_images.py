"""A record that names a Docker image is played in it, with SWE-bench's conda environment active."""

import io
import subprocess
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
from selfplay.sandbox.base import SandboxSpec
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


# What images of the field hold besides: the repository's whole history with the repair, other copies of it,
# a newer release. FUTURE_RELEASE stands in the commit that repairs the bug.
HISTORY = """rm -rf /testbed/.git && cd /testbed && git init -q \\
 && git fetch -q /srv/all.bundle 'refs/*:refs/old/*' && git reset -q @COMMIT@ && rm /srv/all.bundle \\
 && echo "# FUTURE_RELEASE" >> tiny/numbers.py && git commit -qam "FUTURE_RELEASE repairs it" && git tag v9 \\
 && git clone -q --mirror /testbed /srv/mirror.git && git reset -q --hard HEAD~1 \\
 && place=$(ls -d /opt/moved/lib/python3*/site-packages) && mkdir -p $place/tiny $place/tiny-9.9.dist-info \\
 && echo "x = 'FUTURE_RELEASE'" | tee $place/tiny/__init__.py > $place/tiny/numbers.py \\
 && echo "Version: 9.9 FUTURE_RELEASE" > $place/tiny-9.9.dist-info/METADATA \\
 && mkdir -p /home/.cache/pip/http /opt/conda/pkgs/tiny && touch /opt/conda/pkgs/urls.txt \\
 && tee /home/.cache/pip/http/abc /opt/conda/pkgs/tiny/numbers.py < $place/tiny/numbers.py > /dev/null \\
 && cd $place && tar -cf /srv/tiny-9.9.tar tiny && chmod -R a+rX /srv /home /opt/conda /testbed
"""
LOOK = """find / -xdev \\( -name '*.pack' -o -name '*.whl' \\) 2>/dev/null
grep -rlsa FUTURE_RELEASE /srv /home /opt /usr/lib/python3* /testbed
git -C /srv/mirror.git log --all 2>/dev/null; true"""


def test_an_image_with_a_future_commit_and_a_newer_release_shows_neither(image, backend, clones):
    context, client = io.BytesIO(), docker.from_env()
    commit = swe_bench_record(clones)["base_commit"]
    recipe = f"FROM {image}\nUSER root\nCOPY all.bundle /srv/\nRUN {HISTORY.replace('@COMMIT@', commit)}"
    bundle = subprocess.run(
        ["git", "-C", clones / OWNER / NAME, "bundle", "create", "-q", "-", "--all"],
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    with tarfile.open(fileobj=context, mode="w") as tar:
        for name, content in (("Dockerfile", recipe.encode()), ("all.bundle", bundle)):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    changed = f"{IMAGE}-history"
    client.images.build(fileobj=io.BytesIO(context.getvalue()), custom_context=True, tag=changed, rm=True)
    try:
        with backend.open(SandboxSpec(changed)) as box:
            shown = box.run(LOOK, 60).text
            for planted in (
                "FUTURE_RELEASE repairs it",
                "/srv/tiny-9.9.tar",
                "dist-info",
                "/.cache/",
                "/conda/pkgs/",
            ):
                assert planted in shown
        task = parse_task(swe_bench_record(clones, image_name=changed))
        said = io.StringIO()
        environment = prepare([task], backend, clones, Console(file=said, width=1000)).environments[task.repo]
        assert environment.reference.startswith("selfplay/record:"), said.getvalue()
        with open_workspace(backend, environment, environment.tree, {}) as box:
            assert box.run(LOOK, 60).text == ""
            assert box.run("git -C /testbed log --all --oneline | wc -l", 60).text.strip() == "1"
        runner = TestRunner(backend, CONFIG.validator, sandbox_limits(CONFIG), {})
        assert Checker(runner).check([task], {task.repo: environment}).left_out == {}
    finally:
        client.images.remove(changed, force=True)
        client.close()


def test_without_its_image_a_record_is_built_from_its_commit(backend, clones):
    task = parse_task(swe_bench_record(clones, image_name="nowhere.invalid/tiny:1"))
    prepared = prepare([task], backend, clones)
    assert prepared.environments[task.repo].reference.startswith("selfplay/env:")
