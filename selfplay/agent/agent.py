"""One episode: prompt, act, observe, until the policy submits or a limit ends it.

Prompts and submissions are the roles' (`injector`, `solver`). Invariant: token ids are only appended, never
tokenised again, so the log-probabilities of earlier turns stay true. Sampled tokens have loss mask 1; all
others have 0 and log-probability 0.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from selfplay.agent.chat import ChatFormat
from selfplay.agent.episode import FinishReason, Turn
from selfplay.agent.observations import cap_output, make_harmless, render_observation
from selfplay.agent.tool_format import BadFormat
from selfplay.agent.tools import Action, Observation, Toolbox, toolbox
from selfplay.engines.base import Completion, Engine, GenerationRequest, Sampling
from selfplay.errors import SandboxLost, SandboxUnavailable
from selfplay.sandbox.base import Sandbox
from selfplay.settings.playing import AgentSettings

MIN_TURN_TOKENS = 16  # a shorter rest of the context holds no call
# In place of a rejected sample's observation; nobody sees it.
REPEATED = Observation("This was done before, and nothing has changed since.", 1, is_error=True)
# Exit code, turns and tokens of the longest budget line: room is reserved for it.
WIDEST_STATUS = (9999, 999, 99999)


class EpisodeEnd(Exception):
    """Ends the loop; its class says why.

    EpisodeEnd
    ├── Submitted             the policy is done
    ├── OutOfTurns, OutOfTokens
    └── BadFormats, Stuck, CommandTimeouts
    """

    finish: ClassVar[FinishReason]


class Submitted(EpisodeEnd):
    finish = FinishReason.SUBMITTED

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names


class OutOfTurns(EpisodeEnd):
    finish = FinishReason.MAX_TURNS


class OutOfTokens(EpisodeEnd):
    finish = FinishReason.MAX_TOKENS


class BadFormats(EpisodeEnd):
    finish = FinishReason.BAD_FORMAT


class Stuck(EpisodeEnd):
    finish = FinishReason.STUCK


class CommandTimeouts(EpisodeEnd):
    finish = FinishReason.COMMAND_TIMEOUTS


@dataclass(frozen=True)
class AgentResult:
    """What was played.

    weight_versions  (first token index, weight version) of each span of tokens
    submitted        the names that the submit call listed; None without one
    """

    turns: tuple[Turn, ...]
    token_ids: tuple[int, ...]
    loss_mask: tuple[int, ...]
    logprobs: tuple[float, ...]
    weight_versions: tuple[tuple[int, int], ...]
    finish: FinishReason
    messages: tuple[Mapping[str, str], ...]
    submitted: tuple[str, ...] | None = None
    error: str = ""


@dataclass(frozen=True)
class Step:
    """What the stuck detector compares: a call and its output without the budget line.

    action: the whole text if it held no call. changes: it changed a file, by a tool that does nothing else.
    """

    action: str
    observation: str
    is_error: bool
    is_message: bool = False  # held no call
    timed_out: bool = False
    changes: bool = False


def is_stuck(steps: Sequence[Step]) -> bool:
    """True after 4 equal steps, 3 equal failing calls, 3 equal replies without a call, or two steps in turn
    over 6.

    These are OpenHands' rules.
    """

    def last_equal(count: int) -> bool:
        return len(steps) >= count and len({step.action for step in steps[-count:]}) == 1

    if last_equal(4) and len(set(steps[-4:])) == 1:
        return True
    if last_equal(3) and (
        all(step.is_error and not step.is_message for step in steps[-3:])
        or all(s.is_message for s in steps[-3:])
    ):
        return True
    return len(steps) >= 6 and steps[-6:-4] == steps[-4:-2] == steps[-2:] and steps[-1] != steps[-2]


@dataclass
class Conversation:
    """The growing record of an episode: tokens for training, messages and turns for people."""

    chat: ChatFormat
    token_ids: list[int]
    messages: list[Mapping[str, str]]
    loss_mask: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    weight_versions: list[tuple[int, int]] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    @classmethod
    def begin(cls, chat: ChatFormat, system: str, user: str) -> Conversation:
        talk = cls(chat, [], list(chat.messages(system, user)))
        talk._append(chat.start(system, user))
        return talk

    def add_action(self, completion: Completion, text: str) -> tuple[int, int]:
        first = len(self.token_ids)
        for start, version in completion.spans:
            if not self.weight_versions or self.weight_versions[-1][1] != version:
                self.weight_versions.append((first + start, version))
        self.token_ids += completion.token_ids
        self.loss_mask += [1] * len(completion.token_ids)
        self.logprobs += completion.logprobs
        self.messages.append({"role": "assistant", "content": text})
        return first, len(self.token_ids)

    def take_back(self) -> Turn:
        """Remove the last action, which has no observation yet. Returns its record."""
        turn = self.turns.pop()
        first = turn.tokens[0]
        del self.token_ids[first:], self.loss_mask[first:], self.logprobs[first:]
        self.weight_versions = [span for span in self.weight_versions if span[0] < first]
        self.messages.pop()
        return turn

    def repeats(self, action: Action, changes_files: bool) -> bool:
        """True if the same call changed a file before, or if the same command ran since a file last
        changed.
        """
        call, earlier = _call(action), self.steps
        if not changes_files:
            changes = [number for number, step in enumerate(earlier) if step.changes]
            earlier = earlier[changes[-1] + 1 if changes else 0 :]
        return any(step.action == call and not step.is_error for step in earlier)

    def bridge(self, observation: str) -> list[int]:
        """Token ids after the last action: its closing token if the policy left it out, the observation,
        the opening.
        """
        closing = [] if self.token_ids[-1] == self.chat.stop_id else [self.chat.stop_id]
        return [*closing, *self.chat.extend(observation, self.turns[-1].tool)]

    def add_observation(self, text: str, bridge: Sequence[int]) -> None:
        self._append(bridge)
        tool = self.turns[-1].tool
        role = self.chat.role_of(tool)
        self.messages.append({"role": role, "content": text} | ({"name": tool} if role == "tool" else {}))

    def _append(self, ids: Sequence[int]) -> None:
        self.token_ids += ids
        self.loss_mask += [0] * len(ids)
        self.logprobs += [0.0] * len(ids)


@dataclass(frozen=True)
class Agent:
    """Plays one episode in an open sandbox.

    seed_of  number of a turn, from 0 -> its seed
    tag      role/group/member, for the engine's logs and the scripted engine

    With `resamples` a turn is sampled again if its call was refused or unreadable, repeats a change, or
    repeats a command since the last change. A rejected sample leaves only its count.
    """

    engine: Engine
    chat: ChatFormat
    sandbox: Sandbox
    settings: AgentSettings
    seed_of: Callable[[int], int]
    tag: str = ""
    top_p: float = 1.0

    @property
    def tools(self) -> Toolbox:
        return toolbox(self.settings)

    def play(self, system: str, user: str) -> AgentResult:
        """Play the episode.

        A fault of the sandbox becomes a finish reason. Raises EngineError if the engine fails.
        """
        talk = Conversation.begin(self.chat, system, user)
        submitted, error = None, ""
        try:
            while True:
                self._turn(talk)
        except EpisodeEnd as end:
            finish = end.finish
            submitted = end.names if isinstance(end, Submitted) else None
        except SandboxLost as loss:
            finish, error = FinishReason.SANDBOX_LOST, str(loss)
        except SandboxUnavailable as failure:
            finish, error = FinishReason.ENV_ERROR, str(failure)
        return AgentResult(
            turns=tuple(talk.turns),
            token_ids=tuple(talk.token_ids),
            loss_mask=tuple(talk.loss_mask),
            logprobs=tuple(talk.logprobs),
            weight_versions=tuple(talk.weight_versions),
            finish=finish,
            messages=tuple(talk.messages),
            submitted=submitted,
            error=error,
        )

    def _turn(self, talk: Conversation) -> None:
        """One action and its observation. Raises EpisodeEnd if no further turn follows."""
        action, observation = self._act(talk, 0)
        for sample in range(1, self.settings.resamples + 1):
            is_command = action is not None and not self.tools.changes_files(action.tool)
            if not observation.is_error or (is_command and observation is not REPEATED):
                break
            action, observation = self._act(talk, sample, talk.take_back().generate_s)
        output = cap_output(
            make_harmless(observation.text), self.settings.observation_tokens, self.chat.spans
        )
        changes = action is not None and self.tools.changes_files(action.tool) and not observation.is_error
        talk.steps.append(_step(talk.turns[-1].text, action, output, observation, changes))
        self._check_limits(talk)
        self._observe(talk, output, observation.exit_code)

    def _act(
        self, talk: Conversation, sample: int, spent_s: float = 0.0
    ) -> tuple[Action | None, Observation]:
        """Sample an action, carry it out and record its turn. Before the last sample, a repeated call is
        refused.

        sample: how many were rejected before it. spent_s: seconds of generation that they took.
        """
        text, tokens, generate_s = self._generate(talk, sample)
        action, observation = None, None
        started = time.perf_counter()
        try:
            action = self.tools.parse(text)
            if action.tool == "submit":
                raise Submitted(action.names)
            if sample < self.settings.resamples and talk.repeats(
                action, self.tools.changes_files(action.tool)
            ):
                observation = REPEATED
            else:
                observation = self.tools.execute(action, self.sandbox, self.settings)
        except BadFormat as fault:
            observation = Observation(str(fault), 2, is_error=True)
        finally:  # also if the call ended the sandbox: that is a turn too
            act_s = time.perf_counter() - started
            record = _turn_record(text, action, observation, tokens, spent_s + generate_s, act_s)
            talk.turns.append(replace(record, rejected=sample))
        return action, observation

    def _generate(self, talk: Conversation, sample: int) -> tuple[str, tuple[int, int], float]:
        room = self.settings.context_tokens - len(talk.token_ids)
        if room < MIN_TURN_TOKENS:
            raise OutOfTokens
        number = len(talk.turns)
        request = GenerationRequest(
            prompt_ids=tuple(talk.token_ids),
            max_new_tokens=min(self.settings.turn_tokens, room),
            seed=self.seed_of(number + sample * self.settings.max_turns),
            stop_ids=self.chat.stop_ids,
            tag=f"{self.tag}/{number}",
        )
        started = time.perf_counter()
        sampling = Sampling(self.settings.temperature, self.top_p)
        completion = self.engine.generate([request], sampling)[0]
        generate_s = time.perf_counter() - started
        text = self.chat.decode(completion.token_ids)
        return text, talk.add_action(completion, text), generate_s

    def _check_limits(self, talk: Conversation) -> None:
        if _run_length(talk.steps, lambda step: step.is_message) > self.settings.max_format_errors:
            raise BadFormats
        if is_stuck(talk.steps):
            raise Stuck
        if _run_length(talk.steps, lambda step: step.timed_out) >= self.settings.timeouts_in_a_row:
            raise CommandTimeouts
        if len(talk.turns) >= self.settings.max_turns:
            raise OutOfTurns

    def _observe(self, talk: Conversation, output: str, exit_code: int) -> None:
        """Append the observation and what is left of the budget, if a turn can still follow."""
        room = self.settings.context_tokens - len(talk.token_ids)
        status = len(talk.bridge(render_observation("", *WIDEST_STATUS)))
        left = max(room - status - len(self.chat.encode(output)), 0)
        shown = render_observation(output, exit_code, self.settings.max_turns - len(talk.turns), left)
        bridge = talk.bridge(shown)
        if room - len(bridge) < MIN_TURN_TOKENS:
            raise OutOfTokens
        talk.add_observation(shown, bridge)
        talk.turns[-1] = replace(talk.turns[-1], observation=shown)


def _turn_record(
    text: str,
    action: Action | None,
    observation: Observation | None,
    tokens: tuple[int, int],
    generate_s: float,
    act_s: float,
) -> Turn:
    return Turn(
        text=text,
        tool=action.tool if action else "",
        observation="",
        tokens=tokens,
        exit_code=observation.exit_code if observation and action and action.tool == "bash" else None,
        generate_s=generate_s,
        act_s=act_s,
        is_error=observation.is_error if observation else False,
    )


def _step(text: str, action: Action | None, output: str, observation: Observation, changes: bool) -> Step:
    return Step(
        _call(action) if action else text,
        output,
        observation.is_error,
        action is None,
        observation.timed_out,
        changes,
    )


def _call(action: Action) -> str:
    return f"{action.tool}\n{action.body}"


def _run_length(steps: Sequence[Step], holds: Callable[[Step], bool]) -> int:
    """Number of last steps in a row for which `holds` is true."""
    return next((count for count, step in enumerate(reversed(steps)) if not holds(step)), len(steps))
