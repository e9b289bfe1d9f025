"""Settings of episodes and verdicts: sandboxes, environments, the agent, both roles, the validator, the
curriculum.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from selfplay.parts import check_name
from selfplay.settings.base import Range, Section


def part(setting: str) -> AfterValidator:
    """A field that holds the name of a part: one that selfplay knows, or `package.module:name`."""
    return AfterValidator(lambda name: check_name(setting, name))


class SandboxSettings(Section):
    """Where untrusted code runs, and what one sandbox may take."""

    type: Annotated[str, part("sandbox.type")] = "auto"
    """Back end:

    "docker", "bubblewrap", one's own, or "auto" (docker if an engine answers, else bubblewrap).
    """

    memory_mb: int = Field(1024, ge=64)
    """Memory of all processes of one sandbox together, MiB."""

    processes: int = Field(128, ge=8)
    """Processes and threads of one sandbox."""

    workspace_mb: int = Field(256, ge=8)
    """Size of the workspace /testbed, MiB."""

    tmp_mb: int = Field(64, ge=1)
    """Size of /tmp, MiB."""

    prewarmed: int = Field(0, ge=0, le=256)
    """Number of sandboxes kept open and unused, of the most recently requested specs.

    Start-up drops to about 4 ms; each holds about 4 MiB.
    """


class EnvironmentSettings(Section):
    """How a repository's environment is built and admitted."""

    build_timeout_s: float = Field(600, gt=0)
    """Time limit of one installation step, seconds."""

    test_timeout_s: float = Field(90, gt=0)
    """Time limit of one run of the repository's tests, seconds."""

    baselines: int = Field(3, ge=2)
    """Runs of the unchanged tests. Tests whose outcomes differ between them are left out."""


class AgentSettings(Section):
    """One episode: its limits, its tools, how its prompt is written."""

    max_turns: int = Field(64, ge=1)
    """Tool calls of one episode."""

    context_tokens: int = Field(32_768, ge=256)
    """Tokens of one episode: prompt, actions and observations together."""

    turn_tokens: int = Field(2_048, ge=16)
    """Tokens that the policy may write in one turn."""

    observation_tokens: int = Field(4_096, ge=32)
    """Tokens of one observation; a longer one keeps its head and tail."""

    command_timeout_s: float = Field(120, gt=0)
    """Time limit of one command, seconds."""

    max_format_errors: int = Field(3, ge=0)
    """Unreadable replies in a row that are answered; one more ends the episode."""

    timeouts_in_a_row: int = Field(3, ge=1)
    """Commands in a row that reach their time limit before the episode ends."""

    resamples: int = Field(0, ge=0)
    """In training: how often a turn is sampled again when its call was refused, repeated or unreadable."""

    prompt_style: Literal["full", "terse"] = "full"
    """"terse": prompts for policies of a few million parameters."""

    temperature: float = Field(1.0, ge=0)
    """Sampling temperature."""

    tools: tuple[Annotated[str, part("agent.tools")], ...] = ("bash", "edit", "create", "submit")
    """Tools that the policy may call. Must contain "submit"."""

    tool_format: Annotated[str, part("agent.tool_format")] = "tags"
    """How a call is written in the policy's text."""

    @field_validator("tools")
    @classmethod
    def _can_submit(cls, tools: tuple[str, ...]) -> tuple[str, ...]:
        if "submit" not in tools or len(set(tools)) < len(tools):
            raise ValueError('names each tool once, and "submit", which ends an episode')
        return tools


class InjectorSettings(Section):
    """The role that makes bugs."""

    strategies: dict[Annotated[str, part("injector.strategies")], float] = Field(
        default_factory=lambda: {"removal": 1.0, "history": 1.0}
    )
    """Strategies with their weights.

    One is sampled for each group. A strategy is a pair of prompts in prompts/injector/.
    """

    help: tuple[Literal["tests", "target"], ...] = ()
    """What a small policy gets:

    "tests": test files, script and parser; "target": a covered function to break.
    """

    min_passing_tests: Range = (5, 5)
    """Tests that must pass on the original code; sampled within [low, high] for each episode."""

    min_failing_tests: Range = (1, 1)
    """Tests that the bug must break; sampled within [low, high]."""

    min_changed_files: Range = (1, 1)
    """Files that the bug must change; sampled within [low, high]."""

    targets_per_group: int = Field(1, ge=1)
    """With help "target": targets of one injector group. Its members take them in turn, so fewer artifacts
    repeat another. 1: all members compare their bugs of one function."""

    max_target_lines: int = Field(30, ge=1)
    """With help "target": lines of the longest function that may be a target."""

    reward: Annotated[str, part("injector.reward")] = "ssr"
    """Reward of an artifact."""

    alpha: float = Field(0.8, ge=0, le=1)
    """α of the SSR reward: the penalty of a bug that all or no attempts repair, and of a duplicate."""

    @field_validator("strategies")
    @classmethod
    def _some_weight(cls, weights: dict[str, float]) -> dict[str, float]:
        if not weights or any(w < 0 for w in weights.values()) or sum(weights.values()) <= 0:
            raise ValueError("needs at least one strategy with a weight above 0")
        return weights

    @field_validator("min_passing_tests", "min_failing_tests", "min_changed_files")
    @classmethod
    def _ordered(cls, value: Range) -> Range:
        if not 1 <= value[0] <= value[1]:
            raise ValueError(f"needs 1 <= low <= high, not {list(value)}")
        return value


class SolverSettings(Section):
    """The role that repairs bugs."""

    help: tuple[Literal["failure", "suspects", "tests"], ...] = ()
    """What a small policy gets: "failure": a short traceback; "suspects": functions that mostly failing tests
    call; "tests": the tests as they should be, with a script that runs them.
    """

    max_suspects: int = Field(5, ge=1)
    """With help "suspects": how many functions are named."""

    max_spec_tokens: int = Field(8_192, ge=16)
    """Tokens of the reversed test_weaken.diff; a bug with a longer one is rejected as spec_too_long."""

    second_order_share: float = Field(0.25, ge=0, le=1)
    """Share of solver groups that play a bug grown from a failed repair."""

    replay_share: float = Field(0.0, ge=0, le=1)
    """Share of solver groups that replay a bug of mixed results although fresh ones wait."""

    reward: Annotated[str, part("solver.reward")] = "ssr"
    """Reward of a repair attempt."""


class ValidatorSettings(Section):
    """The checks that decide which artifacts count."""

    determinism_runs: int = Field(2, ge=1)
    """Runs of each state with other hash seeds; all must agree."""

    require_exit_status: bool = True
    """Reject a bug that the environment's own test script does not notice: it must end with status 0 on the
    original code and with another status on the buggy code.
    """

    script_timeout_s: float = Field(90, gt=0)
    """Time limit of test_script.sh, seconds."""

    max_patch_bytes: int = Field(256 * 1024, ge=1024)
    """Size of one diff of an artifact, bytes."""

    max_log_bytes: int = Field(4 << 20, ge=1024)
    """Size of a test log, bytes; the rest is cut."""

    max_test_ids: int = Field(50_000, ge=1)
    """Tests that a parser may report."""


class CurriculumSettings(Section):
    """Which bugs solvers play next."""

    sampler: Annotated[str, part("curriculum.sampler")] = "solve_rate"
    """How bugs are chosen for solver groups."""
