"""What both roles share: an episode's key and context, its record, the git repository in its workspace.

Invariant: the harness reads a submission from the sandbox, never from what the policy says. A failing
machine is an episode that ended with env_error, never an exception.
"""

from __future__ import annotations

import hashlib
import io
import posixpath
import re
import tarfile
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

from selfplay.agent.agent import Agent, AgentResult
from selfplay.agent.chat import ChatFormat
from selfplay.agent.episode import Episode, FinishReason, Role
from selfplay.agent.prompting import Prompt
from selfplay.config import Config
from selfplay.engines.base import Engine, derive_seed
from selfplay.errors import ArtifactError, PatchError, SandboxError, SandboxLost, SandboxUnavailable
from selfplay.repositories.environment import Environment
from selfplay.repositories.history import History
from selfplay.sandbox.base import SUBMIT, WORKSPACE, Limits, Sandbox, SandboxBackend
from selfplay.source.trees import Tree
from selfplay.verdicts.artifact import ALIASES, FILE_NAMES, MAX_FILE_BYTES, decode_file
from selfplay.verdicts.prediction import Prediction
from selfplay.verdicts.test_runs import TestRunner

SETUP_TIMEOUT_S = 120.0
# A tar is larger than the files in it. If it exceeds the folder's limit by more, the files are sparse.
ARCHIVE_OVERHEAD_BYTES = 16 << 20
GIT = f"{WORKSPACE}/.git"
MAX_RESTORED = 100  # paths named whose change does not count: a policy may make any number of files

# Author and date are fixed. --force: a repository may hold files that its own rules ignore. It keeps the
# settings of the repository that the workspace has already.
EMPTY_REPOSITORY = f"rm -rf {GIT}/objects/pack/* {GIT}/refs/heads/main {GIT}/index"
TAKE_HISTORY = f"""
set -e
cd {WORKSPACE}
export GIT_AUTHOR_NAME=selfplay GIT_AUTHOR_EMAIL=selfplay@localhost GIT_AUTHOR_DATE='2000-01-01T00:00:00Z'
export GIT_COMMITTER_NAME=selfplay GIT_COMMITTER_EMAIL=selfplay@localhost
export GIT_COMMITTER_DATE='2000-01-01T00:00:00Z'
git update-ref refs/heads/main @COMMIT@
git reset --quiet --mixed main
rm -f .git/ORIG_HEAD
git add --all --force .
git diff --cached --quiet HEAD 2>/dev/null ||
    git commit --quiet --allow-empty --no-verify --message 'The repository as it is'
"""


@dataclass(frozen=True)
class EpisodeKey:
    """Which episode of the run this is. Its seeds follow from this alone."""

    run_seed: int
    update: int
    group: str
    member: int
    labels: Mapping[str, str] = field(default_factory=dict)

    def seed(self, turn: int) -> int:
        return derive_seed(self.run_seed, self.update, self.group, self.member, turn)

    @property
    def hash_seed(self) -> int:
        """Of Python in the episode's sandbox."""
        return self.seed(0) % (1 << 32)


@dataclass(frozen=True)
class EpisodeContext:
    """What all episodes of a run share.

    runner: if set, episodes share their runs of the given test script (see `shared_tests`).
    opening: held while a sandbox is opened and filled, to bound how many are opened at the same time.
    top_p: below 1 in evaluations only, since training needs samples of the whole distribution.
    """

    config: Config
    engine: Engine
    chat: ChatFormat
    backend: SandboxBackend
    limits: Limits
    runner: TestRunner | None = None
    opening: AbstractContextManager[object] = field(default_factory=nullcontext)
    top_p: float = 1.0


def sandbox_limits(config: Config) -> Limits:
    settings = config.sandbox
    return Limits(
        memory_bytes=settings.memory_mb << 20,
        processes=settings.processes,
        workspace_bytes=settings.workspace_mb << 20,
        tmp_bytes=settings.tmp_mb << 20,
    )


def as_submission(prediction: Prediction) -> dict[str, str]:
    restored = "".join(f"{path}\n" for path in prediction.restored[:MAX_RESTORED])
    return {"patch": prediction.patch} | ({"restored": restored} if restored else {})


@dataclass
class Record:
    """Gathers an episode: what was played, what was submitted, and whose fault an early end was."""

    role: Role
    environment: Environment
    key: EpisodeKey
    system: Prompt
    user: Prompt
    result: AgentResult | None = None
    submission: Mapping[str, str] = field(default_factory=dict)
    finish: FinishReason | None = None  # if it differs from the agent's
    error: str = ""
    started_at: float = field(default_factory=time.time)
    _clock: float = field(default_factory=time.monotonic)

    def play(self, box: Sandbox, context: EpisodeContext) -> AgentResult:
        tag = f"{self.role}/{self.key.group}/{self.key.member}"
        settings, seed = context.config.agent, self.key.seed
        agent = Agent(context.engine, context.chat, box, settings, seed, tag, context.top_p)
        return agent.play(self.system.text, self.user.text)

    @contextmanager
    def machine_failures(self) -> Iterator[None]:
        """Around the whole episode.

        A sandbox lost here was lost before the policy acted: `losses` takes later losses.
        """
        try:
            yield
        except SandboxError as failure:
            self.finish, self.error = FinishReason.ENV_ERROR, str(failure)

    @contextmanager
    def losses(self) -> Iterator[None]:
        """Around reading the submission, which processes and files of the policy can spoil."""
        try:
            yield
        except SandboxLost as loss:
            self.finish, self.error = FinishReason.SANDBOX_LOST, str(loss)
        except (ArtifactError, PatchError) as refusal:
            self.error = str(refusal)

    def episode(self, strategy: str = "", target: str = "", bug_id: str = "") -> Episode:
        key, result = self.key, self.result
        group = re.sub(r"[^A-Za-z0-9._-]+", "-", key.group)
        messages = [{"role": "system", "content": self.system.text}] if self.system.text else []
        return Episode(
            episode_id=f"u{key.update}-{self.role}-{group}-m{key.member}",
            role=self.role,
            repository=self.environment.repository,
            update=key.update,
            group=key.group,
            member=key.member,
            seed=key.seed(0),
            finish=self.finish or (result.finish if result else FinishReason.ENV_ERROR),
            messages=result.messages if result else (*messages, {"role": "user", "content": self.user.text}),
            turns=result.turns if result else (),
            token_ids=result.token_ids if result else (),
            loss_mask=result.loss_mask if result else (),
            logprobs=result.logprobs if result else (),
            weight_versions=result.weight_versions if result else (),
            strategy=strategy,
            target=target,
            bug_id=bug_id,
            prompt_hash=hashlib.sha256(f"{self.system.hash}\0{self.user.hash}".encode()).hexdigest(),
            submission=dict(self.submission),
            started_at=self.started_at,
            duration_s=time.monotonic() - self._clock,
            error=self.error or (result.error if result else ""),
        )


def take_history(box: Sandbox, history: History) -> None:
    """Give the repository in the workspace the commits. Its last commit is the workspace as it is.

    Raises SandboxUnavailable if git fails: nothing of the policy has run yet, so it is the machine's fault.
    """
    _set_up(box, EMPTY_REPOSITORY)
    if history.shallow:
        box.write_archive(GIT, _tar_of("shallow", history.shallow))
    for name, content in history.packs():
        box.write_archive(f"{GIT}/objects/pack", _tar_of(name, content))
    _set_up(box, TAKE_HISTORY.replace("@COMMIT@", history.commit))


def _set_up(box: Sandbox, script: str) -> None:
    """Run a script before the policy does, in a subshell, so that the policy's session does not change."""
    made = box.run(f"(\n{script})", timeout_s=SETUP_TIMEOUT_S)
    if made.exit_code:
        raise SandboxUnavailable(
            f"no history could be put into a sandbox (exit code {made.exit_code}): {made.text.strip()[-500:]}"
        )


def _tar_of(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def read_submission(box: Sandbox, limits: Limits, names: tuple[str, ...]) -> dict[str, str]:
    """The artifact's files that `names` lists, as text; without names, all that exist.

    Leaves out what is missing, not a plain file, or not UTF-8; diffs may hold other bytes. A file over the
    cap keeps one byte too many, which the validator reports.
    """
    files = Tree.from_tar(box.read_archive(SUBMIT, limits.submit_bytes + ARCHIVE_OVERHEAD_BYTES))
    wanted = {posixpath.relpath(posixpath.join(SUBMIT, name), SUBMIT) for name in names} or files.keys()
    submission: dict[str, str] = {}
    for name in (*FILE_NAMES, *ALIASES):
        if name in wanted and name in files:
            try:
                submission[name] = decode_file(name, files[name].content[: MAX_FILE_BYTES + 1])
            except UnicodeDecodeError:
                continue
    return submission
