"""Images as projects of the field build them: where the repository lies, what is kept, and what is gone."""

import contextlib
import io
import shutil
import tarfile
from dataclasses import dataclass, field

import docker
import pytest
from field_records import (
    DIGITS,
    NAME,
    OWNER,
    git,
    make_clones,
    multi_swe_record,
    r2e_record,
    swe_bench_record,
    swe_smith_record,
)
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
from selfplay.source.diffs import reverse_patch
from selfplay.source.trees import FileEntry
from selfplay.verdicts.grading import grade
from selfplay.verdicts.test_runs import TestRunner

pytestmark = [pytest.mark.sandbox, pytest.mark.slow]
CONFIG = build_config({})
HIDDEN = "digits(-120)"  # in the tests of the repair, and in no other file
GENERATED = "VERSION = '0.4 generated, and known to no commit'\n"


def venv(folder):
    """Lines that move the packages of the base image into a virtual environment at `folder`."""
    return (
        f"RUN python3 -m venv --without-pip --copies {folder} && cp -r /opt/env/lib/python3*/site-packages/. "
        f"$(echo {folder}/lib/python3*/site-packages)/ && rm -rf /opt/env \\\n"
        f" && printf '#!{folder}/bin/python\\nimport pytest\\nraise SystemExit(pytest.main())\\n'"
        f" > {folder}/bin/pytest && chmod 755 {folder}/bin/pytest\n"
    )


CONDA_LINES = (
    f"RUN mkdir -p {CONDA[0]}/bin && mv /opt/env /opt/moved \\\n"
    f" && printf '#!/bin/sh\\nexec /opt/moved/bin/python \"$@\"\\n' > {CONDA[0]}/bin/python"
    f" && chmod 755 {CONDA[0]}/bin/python\n"
)


@dataclass(frozen=True)
class Family:
    """folder: of the repository in the image. lines: of its Dockerfile. python: where commands find it."""

    record: object
    folder: str
    lines: str
    python: str
    changes: dict = field(default_factory=dict)


PRO = {"dockerhub_tag": "tiny.tiny-3", "requirements": "", "interface": "", "repo_language": "python"}
FAMILIES = {
    "SWE-bench Pro": Family(
        swe_bench_record,
        "/app",
        venv("/app/.venv") + 'ENV PATH="/app/.venv/bin:$PATH"\nWORKDIR /app\nRUN mkdir -p node_modules/left'
        " && echo pad > node_modules/left/index.js\n",
        "/opt/selfplay/beside/.venv/bin/python",
        PRO,
    ),
    "R2E-Gym": Family(
        r2e_record,
        "/testbed",
        venv("/testbed/.venv") + f"RUN mkdir /r2e_tests && echo 'assert {HIDDEN}' > /r2e_tests/test_1.py"
        " && ln -s /r2e_tests /testbed/r2e_tests && echo 'pytest r2e_tests' > /testbed/run_tests.sh"
        " && chmod 700 /testbed/.venv/bin\n",
        "/opt/selfplay/beside/.venv/bin/python",
    ),
    "SWE-smith": Family(swe_smith_record, "/testbed", CONDA_LINES, f"{CONDA[0]}/bin/python"),
    "SWE-rebench": Family(
        swe_bench_record,
        "/testbed",
        CONDA_LINES,
        f"{CONDA[0]}/bin/python",
        {"install_config": {"python": "3.9", "test_cmd": "pytest -rA"}},
    ),
    "Multi-SWE": Family(
        multi_swe_record,
        f"/home/{NAME}",
        f"RUN echo 'assert {HIDDEN}' | tee /home/fix.patch /home/test.patch > /home/fix-run.sh\n",
        "/opt/env/bin/python",
    ),
    "an image of one's own": Family(
        swe_bench_record, "/srv/code", "WORKDIR /srv/code\n", "/opt/env/bin/python"
    ),
}


@pytest.fixture(scope="module")
def backend(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFPLAY_CACHE", str(folder))
        yield open_or_skip("docker", folder)


@pytest.fixture(scope="module")
def clones(tmp_path_factory):
    return make_clones(tmp_path_factory.mktemp("clones"))


@pytest.fixture(scope="module")
def base(backend, clones):
    """An image with pytest at /opt/env."""
    task = parse_task(swe_bench_record(clones, image_name="nowhere.invalid/none:1"))
    preparer = Preparer(backend, CONFIG, sandbox_limits(CONFIG), Console(file=io.StringIO()))
    (environment,) = prepare_tasks([task], preparer, clones).environments.values()
    return environment.reference


def build(tag, base, family, clones, folder, commit):
    """The image, with the whole history, at `commit`, and files that git does not know."""
    code = folder / "code"
    git(clones, "clone", "--quiet", str(clones / OWNER / NAME), str(code))
    git(code, "checkout", "--quiet", commit)
    if family.record is swe_smith_record:  # a copy of the project with one commit of its own
        shutil.rmtree(code / ".git")
        git(code, "init", "--quiet")
        git(code, "add", "--all", "--force")
        git(code, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "Initial")
    (code / ".git" / "info" / "exclude").write_text("*.so\n.venv\n")
    (code / "tiny" / "_version.py").write_text(GENERATED)
    (code / "tiny" / "_speed.so").write_bytes(b"\x7fELF built here")
    (code / "build" / "lib" / "tiny").mkdir(parents=True)
    shutil.copy(code / "tiny" / "numbers.py", code / "build" / "lib" / "tiny")
    text = f"FROM {base}\nUSER root\nCOPY code {family.folder}\n{family.lines}"
    (folder / "Dockerfile").write_text(text)
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        tar.add(folder, ".")
    context.seek(0)
    client = docker.from_env()
    client.images.build(fileobj=context, custom_context=True, tag=tag, rm=True, network_mode="none")
    client.close()


@pytest.fixture(scope="module", params=FAMILIES)
def prepared(request, backend, base, clones, tmp_path_factory):
    """Family, task, environment and what was said, of one family."""
    family = FAMILIES[request.param]
    tag = f"selfplay-test/{request.param.lower().replace(' ', '-').replace(chr(39), '')}:1"
    names = "docker_image" if family.record is r2e_record else "image_name"
    record = family.record(clones, **family.changes, **{names: tag})
    task = parse_task(record)
    if family.record is multi_swe_record:  # its images have fixed names
        tag = task.setup.images[0]
    build(tag, base, family, clones, tmp_path_factory.mktemp("image"), task.repo.rpartition("@")[2])
    said = io.StringIO()
    preparer = Preparer(backend, CONFIG, sandbox_limits(CONFIG), Console(file=said, width=1000))
    found = prepare_tasks([task], preparer, tmp_path_factory.mktemp("no-clones"))
    yield family, task, found, said.getvalue()
    client = docker.from_env()
    made = {environment.reference for environment in found.environments.values()}
    for name in (tag, *made, *(f"{name}-files" for name in made)):
        with contextlib.suppress(docker.errors.APIError):
            client.images.remove(name, force=True)
    client.close()


def test_a_record_is_graded_in_its_image_whichever_family_it_is_of(prepared, backend):
    _, task, found, said = prepared
    assert found.left_out == {}, said
    runner = TestRunner(backend, CONFIG.validator, sandbox_limits(CONFIG), {})
    checked = Checker(runner).check([task], found.environments)
    assert checked.left_out == {}
    environment, bug = checked.bugs[task.instance_id]
    repair = reverse_patch(task.patch) if task.setup.patch_is_bug else task.patch
    assert grade(bug, repair, environment, runner).passed
    assert not grade(bug, "", environment, runner).passed


def test_a_solver_finds_the_commit_and_what_its_tests_need_but_no_history_and_no_hidden_test(
    prepared, backend
):
    family, task, found, said = prepared
    environment = found.environments[task.repo]
    assert "differ in the image" not in said
    with open_workspace(backend, environment, environment.tree, {}) as box:

        def ask(command):
            return box.run(command, 120).text.strip()

        assert ask("command -v python") == family.python
        assert ask("python -c 'import pytest, tiny; print(tiny.__file__)'") == "/testbed/tiny/__init__.py"
        assert ask("cat tiny/_version.py; head -c 4 tiny/_speed.so | tail -c 3") == f"{GENERATED}ELF"
        assert ask("git log --oneline | wc -l; ls build/lib/tiny 2>&1 | grep numbers") == "1"
        if ".venv" in family.lines:
            assert ask("/testbed/.venv/bin/pytest --version").startswith("pytest")
        if family.folder != "/testbed":
            assert ask(f"cd {family.folder} && pwd -P") == "/testbed"
        where = "/testbed /app /home /root /opt /r2e_tests /srv /run_tests.sh"
        assert ask(
            f"grep -rIlsF --include='*.py' --include='*.patch' --include='*.sh' '{HIDDEN}' {where}"
        ) in (
            "",
            "/testbed/tests/test_numbers.py" if task.setup.patch_is_bug else "",
        )
    assert not any("_version" in path or path.startswith((".venv", "build")) for path in environment.tree)
    assert DIGITS.partition("::")[0] in environment.tree


def test_an_image_of_another_commit_is_not_used(backend, base, clones, tmp_path):
    family, tag = FAMILIES["SWE-rebench"], "selfplay-test/other-commit:1"
    record = swe_bench_record(clones, image_name=tag)
    build(tag, base, family, clones, tmp_path, "HEAD")
    missing = "0123456789" * 4
    said = io.StringIO()
    preparer = Preparer(backend, CONFIG, sandbox_limits(CONFIG), Console(file=said, width=1000))
    task = parse_task({**record, "base_commit": missing})
    found = prepare_tasks([task], preparer, clones)
    docker.from_env().images.remove(tag, force=True)
    assert found.environments == {}
    assert f"the repository in the image {tag} has no commit {missing}" in found.left_out[task.instance_id]


def test_a_patch_cannot_take_the_place_of_what_lies_beside_the_tree(prepared, backend):
    """Else a policy could bring its own Python or its own runner of the tests."""
    _, task, found, _ = prepared
    environment = found.environments[task.repo]
    fake = FileEntry(b"#!/bin/sh\necho mine\n", True)
    paths = ("tiny/_speed.so", "tiny/_version.py/x", ".venv/bin/python", "node_modules/left/index.js")
    tree = environment.tree.replace(dict.fromkeys(paths, fake))
    beside = {path for path in paths if any(path.startswith(kept) for kept in environment.beside)}
    assert beside >= {"tiny/_speed.so", "tiny/_version.py/x"}
    with open_workspace(backend, environment, tree, {}) as box:
        for path in paths:
            assert ("mine" in box.run(f"cat {path}", 60).text) == (path not in beside)
        assert box.run("cat tiny/_version.py", 60).text == GENERATED
    blocked = tree.replace({path: None for path in tree if path.startswith("tiny/")} | {"tiny": fake})
    with open_workspace(backend, environment, blocked, {}) as box:  # no failure of the machine
        assert box.run("./tiny", 60).text == "mine\n"
