"""The settings of a run: TOML in, `--set key=value` on top, resolved JSON out. Sections are in `settings/`.

Unknown keys and wrong types are errors that name the key. Defaults are the paper's task at a size that one
machine can run; the quickstart and the paper's own scale are recipes in `runs/recipes/`.
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

from selfplay.errors import ConfigError
from selfplay.runtime.recipes import find_recipe, read_text
from selfplay.settings import faults
from selfplay.settings.base import Section
from selfplay.settings.learning import (
    EvaluationSettings,
    MetricsSettings,
    PolicySettings,
    TrainerSettings,
    TrainSettings,
)
from selfplay.settings.playing import (
    AgentSettings,
    CurriculumSettings,
    EnvironmentSettings,
    InjectorSettings,
    SandboxSettings,
    SolverSettings,
    ValidatorSettings,
)
from selfplay.settings.serving import ClusterSettings, EngineSettings

# Settings that had another name until version 0.1 -> their name now. Old names work for one release.
RENAMED_SETTINGS = {
    "train.ahead": "train.max_async_updates",
    "train.learn": "train.trained_roles",
    "train.even": "train.fill_idle_slots",
    "train.preparing": "train.max_opening",
    "sandbox.ready": "sandbox.prewarmed",
    "agent.requeries": "agent.max_format_errors",
    "agent.redraws": "agent.resamples",
    "injector.given": "injector.help",
    "solver.given": "solver.help",
    "trainer.anchor_weight": "trainer.kl_coef",
    "trainer.call_weight": "trainer.call_reward_weight",
}
RENAMED_VALUES = {("trainer.credit", "kept"): "kept_edits"}
RECIPES = "recipes"  # a folder that stands beside those of runs
MAX_NAME_BYTES = 200  # of a run's name; a file system takes 255, and a partial folder has a longer name


class RunSettings(Section):
    """The run's own folder."""

    name: str = ""
    """One folder name; empty: made from date and time."""

    folder: str = "runs"
    """The folder that holds runs."""

    @field_validator("name")
    @classmethod
    def _is_plain(cls, name: str) -> str:
        wrong = not name.isprintable() or name != name.strip() or "/" in name or "\\" in name
        wrong |= name.startswith(("-", ".")) or name == RECIPES or len(name.encode()) > MAX_NAME_BYTES
        if wrong:
            raise ValueError(
                f"{name!r} cannot name a run. A name is that of one folder, of up to {MAX_NAME_BYTES} bytes, "
                "without slashes and line breaks. It begins with neither '-' nor '.', and it is not "
                f"{RECIPES!r}."
            )
        return name


class Config(Section):
    """Everything that decides a run. `resolved()` is what `config.json` holds."""

    seed: int = 0
    """Seed of the run. Every turn's seed is derived from it."""

    max_lag: int = Field(8, ge=0)
    """The oldest episode that is trained on, in updates. 0: playing and training take turns."""

    run: RunSettings = RunSettings()
    train: TrainSettings = TrainSettings()
    policy: PolicySettings = PolicySettings()
    engine: EngineSettings = EngineSettings()
    sandbox: SandboxSettings = SandboxSettings()
    environment: EnvironmentSettings = EnvironmentSettings()
    agent: AgentSettings = AgentSettings()
    injector: InjectorSettings = InjectorSettings()
    solver: SolverSettings = SolverSettings()
    validator: ValidatorSettings = ValidatorSettings()
    curriculum: CurriculumSettings = CurriculumSettings()
    trainer: TrainerSettings = TrainerSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    metrics: MetricsSettings = MetricsSettings()
    cluster: ClusterSettings = ClusterSettings()

    @model_validator(mode="after")
    def _share_a_gpu(self) -> Config:
        if self.engine.sync == "ipc" and self.trainer.type == "deepspeed" and self.trainer.ranks > 1:
            raise ValueError(
                "engine.sync = 'ipc' is for a trainer of one process on the servers' GPU, "
                f"and trainer.ranks is {self.trainer.ranks}; set engine.sync = 'nccl'"
            )
        return self

    def resolved(self) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"

    def parts(self) -> dict[str, tuple[str, ...]]:
        """The names of the parts that this run uses, by setting."""
        strategies = self.injector.strategies
        return {
            "injector.reward": (self.injector.reward,),
            "solver.reward": (self.solver.reward,),
            "injector.strategies": tuple(name for name, weight in strategies.items() if weight > 0),
            "agent.tools": self.agent.tools,
            "agent.tool_format": (self.agent.tool_format,),
            "curriculum.sampler": (self.curriculum.sampler,),
            "sandbox.type": (self.sandbox.type,),
            "engine.type": (self.engine.type,),
            "trainer.type": (self.trainer.type,),
            "trainer.advantage": (self.trainer.advantage,),
            "trainer.aggregation": (self.trainer.aggregation,),
            "trainer.clipping": (self.trainer.clipping,),
            "trainer.episodes": (self.trainer.episodes,),
            "metrics.sinks": self.metrics.sinks,
        }


def known_keys() -> list[str]:
    """Every dotted key, for documentation."""
    return faults.known_keys(Config)


def with_new_names(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Settings under their names of today, and for each old name or value one line that says what to write
    instead.
    """
    found: dict[str, Any] = {
        section: dict(inner) if isinstance(inner, Mapping) else inner for section, inner in values.items()
    }
    notes = []
    for old, new in RENAMED_SETTINGS.items():
        section, _, key = old.partition(".")
        inner = found.get(section)
        if isinstance(inner, dict) and key in inner:
            new_key = new.partition(".")[2]
            if new_key in inner:
                raise ConfigError(f"{old} is called {new} now, and both are set; leave {old} out.")
            inner[new_key] = inner.pop(key)
            notes.append(
                f"{old} is called {new} now; write {new}. The old name works until the next release."
            )
    for (setting, old_value), value in RENAMED_VALUES.items():
        section, _, key = setting.partition(".")
        inner = found.get(section)
        if isinstance(inner, dict) and inner.get(key) == old_value:
            inner[key] = value
            notes.append(f"{setting} = {old_value!r} is called {value!r} now; write that.")
    return found, notes


def _parse_value(key: str, text: str) -> Any:
    """A `--set` value: TOML where it parses as such (numbers, booleans, lists, quoted text), else the text
    itself.

    A setting that holds a text gets `2026` as a text, too.
    """
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    holds_text = faults.type_of(Config, key.split(".")) is str
    return text if holds_text and not isinstance(value, str) else value


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """`key=value` texts as dotted key -> value, under today's names.

    Raises ConfigError for one that is not that.
    """
    parsed: dict[str, Any] = {}
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"--set {override!r} is not key=value, for instance --set train.updates=6")
        key = RENAMED_SETTINGS.get(key.strip(), key.strip())
        parsed[key] = _parse_value(key, value.strip())
    if parsed.get("run.name") == "":
        raise ConfigError("--set run.name= is empty. Leave it out for a name made from date and time.")
    return parsed


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {key}: '{section}' is a value, not a section.")
        values = inner
    values[last] = value


def build_config(
    values: Mapping[str, Any], source: str = "configuration", overridden: Collection[str] = ()
) -> Config:
    """Settings from a tree of values, old names included.

    overridden: keys that --set gave, and the sections that only it has.
    Raises ConfigError naming source, key, value and what would be right.
    """
    try:
        return Config.model_validate(with_new_names(values)[0])
    except ValidationError as error:
        raise ConfigError(faults.explain(error, Config, source, overridden)) from error


def load_config(path: Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file, or a run's config.json, and lay `key=value` overrides on top.

    path: a file, or the name of a recipe that ships. A line on stderr says for each old name what to write
    instead; a config.json was written by a program, so none then. Raises ConfigError naming file, key, value
    and what would be right.
    """
    values: dict[str, Any] = {}
    if path is not None:
        path = find_recipe(path, "the configuration")
        text = read_text(path, "the configuration")
        try:
            values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        except (tomllib.TOMLDecodeError, json.JSONDecodeError) as error:
            kind = path.suffix.lstrip(".").upper() or "TOML"
            raise ConfigError(f"{path} is not valid {kind}: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{path} holds no settings: it is a JSON text, and no object of sections.")
    values, notes = with_new_names(values)
    parsed = parse_overrides(overrides)
    overridden = {name for key in parsed for name in faults.laid_over(values, key)}
    for key, value in parsed.items():
        _assign(values, key, value)
    if path is None or path.suffix != ".json":
        for note in [*notes, *_old_overrides(overrides)]:
            print(f"note: {note}", file=sys.stderr)
    return build_config(values, str(path) if path else "--set", overridden)


def _old_overrides(overrides: Sequence[str]) -> Iterator[str]:
    for override in overrides:
        key = override.partition("=")[0].strip()
        if new := RENAMED_SETTINGS.get(key):
            yield f"{key} is called {new} now; write {new}. The old name works until the next release."
