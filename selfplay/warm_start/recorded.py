"""Training texts from recorded runs: episodes of a policy that were proven to be right.

Kept are injector episodes whose artifact became a bug, and solver episodes whose repair was confirmed.
Plays nothing and judges nothing. Invariant: token ids are used as they were sampled, so a run whose tokenizer
or chat template differs is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfplay.agent.episode import Episode, Role
from selfplay.config import Config, load_config
from selfplay.curriculum.store import Store
from selfplay.errors import ConfigError, EngineError, RunError, StoreError
from selfplay.verdicts.confirmation import Confirmation
from selfplay.warm_start.attempts import training_text

if TYPE_CHECKING:
    from selfplay.warm_start.documents import Document

DEFAULTS = Config()


def recorded_texts(
    runs: Sequence[str], tokenizer: Any, config: Config = DEFAULTS
) -> dict[Role, list[Document]]:
    """The proven episodes of these run folders, by role.

    config: of the policy to be. Raises ConfigError for a folder that is no run, or one whose policy has
    another tokenizer, template or format of calls.
    """
    texts: dict[Role, list[Document]] = {Role.INJECTOR: [], Role.SOLVER: []}
    for run in runs:
        folder = Path(run).expanduser()
        if not (folder / "config.json").is_file():
            raise ConfigError(f"episodes: {run!r} is no run folder: it has no config.json")
        _check_tokenizer(folder, tokenizer, config)
        for name in _proven(folder):
            episode = _read(folder / "episodes" / f"{name}.json.gz")
            texts[episode.role].append(training_text(episode))
    return texts


def _check_tokenizer(run: Path, tokenizer: Any, config: Config) -> None:
    from selfplay.agent.chat import load_tokenizer, policy_path
    from selfplay.engines.templated_models import templated_folder

    played = load_config(run / "config.json")
    model, template = played.policy.model, played.policy.chat_template
    for name, theirs, ours in (
        ("agent.tool_format", played.agent.tool_format, config.agent.tool_format),
        ("policy.template_args", played.policy.template_args, config.policy.template_args),
    ):
        if theirs != ours:
            raise ConfigError(
                f"episodes: {run} was played with {name} = {theirs!r}, and the texts are made for {ours!r}. "
                "Give executed.recipe the same value, or other runs."
            )
    try:
        theirs = load_tokenizer(templated_folder(policy_path(model), template) if template else model)
    except EngineError as error:
        raise ConfigError(f"episodes: the policy of {run} cannot be read: {error}") from error
    same = theirs.get_vocab() == tokenizer.get_vocab() and theirs.chat_template == tokenizer.chat_template
    if not same:
        raise ConfigError(
            f"episodes: {run} was played by {model}, whose tokens or chat template are others than those of "
            "the model to start from. Give runs of that model."
        )


def _proven(run: Path) -> Iterator[str]:
    """Ids of the episodes to keep."""
    try:
        with closing(Store.open(run / "selfplay.db", writer=False)) as store:
            yield from [
                bug.injector_episode_id for bug in store.bugs() if bug.order == 1 and bug.injector_episode_id
            ]
            for attempt in store.attempts():
                if attempt.passed and attempt.confirmed is Confirmation.CONFIRMED:
                    yield attempt.episode_id
    except StoreError as error:
        raise ConfigError(f"episodes: {run}: {error}") from error


def _read(file: Path) -> Episode:
    try:
        return Episode.read(file)
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{file} cannot be read as an episode: {error}") from error
