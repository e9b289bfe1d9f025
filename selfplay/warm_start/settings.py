"""Settings of a warm start: corpus, sizes and stages. Reads them from TOML."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from selfplay.errors import ConfigError
from selfplay.runtime.recipes import find_recipe, read_text
from selfplay.settings import faults
from selfplay.settings.base import Section

Progress = Callable[[str], None]

CORPUS = (
    "inflection==0.5.1",
    "cachetools==8.0.1",
    "xmltodict==1.0.4",
    "humanize==4.17.0",
    "python-slugify==9.2.0",
    "toolz==1.2.0",
    "isodate==0.7.2",
    "parse==1.22.4",
    "jmespath==1.1.0",
    "tabulate==0.10.0",
    "sqlparse==0.6.1",
    "boltons==26.2.0",
    "more-itertools==11.2.1",
    "click==8.5.1",
    "jinja2==3.1.6",
    "markupsafe==3.0.4",
    "werkzeug==3.1.9",
    "flask==3.1.3",
    "itsdangerous==2.2.0",
    "requests==2.34.2",
    "attrs==26.1.0",
    "packaging==26.3",
    "python-dateutil==4.0.0",
    "pyparsing==3.3.3",
    "networkx==3.7",
    "pluggy==1.7.0",
    "rich==15.0.0",
    "pygments==2.21.0",
    "tomlkit==0.15.2",
    "jsonschema==4.26.0",
    "marshmallow==4.4.0",
    "arrow==1.4.0",
    "beautifulsoup4==4.15.0",
    "bleach==6.4.0",
    "markdown==3.11.3",
    "mistune==3.4.0",
    "docopt==0.6.2",
    "fire==0.7.1",
    "termcolor==3.3.0",
    "wcwidth==0.9.4",
    "prettytable==3.18.0",
    "simplejson==4.3.0",
    "semver==3.1.1",
    "natsort==8.4.0",
    "sortedcontainers==2.4.0",
    "funcy==2.1",
    "pydash==8.1.0",
    "glom==25.12.0",
    "voluptuous==0.16.0",
    "schema==0.7.8",
    "cerberus==1.3.8",
    "wtforms==3.3.2",
    "peewee==4.5.3",
    "tornado==6.6.1",
    "bottle==0.13.4",
    "pyasn1==0.6.5",
    "rsa==4.9.1",
    "colour==0.1.5",
    "webcolors==25.10.0",
    "pyrsistent==0.20.0",
    "lark==1.3.1",
    "parso==0.8.7",
    "black==26.10.1",
    "yapf==0.43.0",
    "pycodestyle==2.15.0",
    "pyflakes==4.1.0",
    "tinydb==4.9.0",
    "deepdiff==9.1.0",
    "jsonpointer==3.12",
    "jsonpatch==1.47",
    "validators==0.36.0",
    "idna==3.20",
    "h11==0.16.0",
    "hpack==4.2.0",
    "wsproto==1.3.2",
    "websockets==17.4",
    "anyio==4.16.0",
    "croniter==7.0.0",
    "rfc3986==2.0.0",
    "babel==2.18.0",
    "pyyaml==6.0.3",
    "sqlalchemy==2.1.9",
    "django==6.1.3",
    "coverage==7.17.3",
    "intervaltree==3.2.1",
    "ply==3.11",
)
HELD_OUT = "textdistance==4.6.3"
# Where episodes are played: the list of the quickstart.
REPOSITORIES = (
    "pypi:toolz==0.12.0..1.0.0",
    "pypi:cachetools==5.5.2",
    "pypi:parse==1.20.2",
    "pypi:inflection==0.5.1",
    "pypi:jmespath==1.0.1",
)


class ShapeSettings(Section):
    """Sizes of the model; see `copying.PolicyShape`."""

    vocabulary: int = Field(1024, ge=280)
    """Tokens of the vocabulary."""

    hidden: int = Field(192, ge=16)
    """Width of the residual stream."""

    layers: int = Field(4, ge=1)
    """Layers."""

    heads: int = Field(3, ge=1)
    """Attention heads of a layer."""

    head_dim: int = Field(64, ge=4)
    """Dimensions of a head."""

    intermediate: int = Field(576, ge=16)
    """Width of the MLP."""


class StageSettings(Section):
    """Training on one mix of texts. It ends at `steps` or after `seconds`, whichever comes first."""

    name: str
    """Name of the stage, for progress and figures."""

    steps: int = Field(ge=1)
    """Steps at most."""

    seconds: float = Field(3600, gt=0)
    """Training time at most, seconds."""

    learning_rate: float = Field(1e-3, gt=0)
    """Highest learning rate; it falls by a cosine."""

    warmup_steps: int = Field(40, ge=0)
    """Steps in which the learning rate rises; all, if the stage has fewer."""

    final_share: float = Field(0.05, ge=0, le=1)
    """Where the learning rate ends, as a share of its highest value."""

    weight_decay: float = Field(0.05, ge=0)
    """AdamW's weight decay."""

    mix: dict[str, float]
    """Relative frequency of each kind of text, see KINDS."""


class ExecuteSettings(Section):
    """Rejection fine-tuning on episodes that the teacher plays in sandboxes.

    Bugs that validate and repairs that pass are kept. Episodes are played only if the mix of a stage has
    executed_injector or executed_solver.
    """

    injector_episodes: int = Field(600, ge=0)
    """Injector episodes to keep."""

    solver_episodes: int = Field(500, ge=0)
    """Solver episodes to keep."""

    repositories: tuple[str, ...] = REPOSITORIES
    """Lines of a repository list that the teacher plays on."""

    max_lines: int = Field(22, ge=2)
    """Lines of the longest function that may be broken."""

    recipe: str = "runs/recipes/quickstart.toml"
    """The configuration that episodes are played with. All texts write calls in its `agent.tool_format`, and
    are in the chat template that its `policy` section gives to the base."""

    sandbox: str = "auto"
    """Sandbox back end, as `sandbox.type` of a run."""

    script_timeout_s: float = Field(10, gt=0)
    """Time limit of a test run. Tests that hang demonstrate nothing."""

    whole_lines: bool = False
    """True: an edit replaces its whole line. That suits a pretrained policy, which copies lines well.

    False: it replaces a part that occurs once in the line. Fabricated texts do as the teacher does.
    """

    workers: int = Field(2, ge=1)
    """Mutations that are played at the same time."""


EXECUTED = ("executed_injector", "executed_solver")
KINDS = ("source", "solver_drill", "injector_drill", "solver_short", "solver", "injector", "copy", *EXECUTED)
STAGES = (
    StageSettings(name="source", steps=300, learning_rate=1.1e-3, mix={"source": 0.8, "copy": 0.2}),
    StageSettings(
        name="drills",
        steps=800,
        learning_rate=1.1e-3,
        mix={
            "solver_drill": 0.32,
            "injector_drill": 0.14,
            "solver_short": 0.12,
            "solver": 0.2,
            "injector": 0.15,
            "copy": 0.07,
        },
    ),
    StageSettings(
        name="episodes",
        steps=1800,
        learning_rate=9e-4,
        mix={
            "solver_drill": 0.2,
            "injector_drill": 0.05,
            "solver_short": 0.08,
            "solver": 0.44,
            "injector": 0.18,
            "copy": 0.05,
        },
    ),
    # A third of the texts are played episodes. The others come from many more packages, to limit forgetting.
    StageSettings(
        name="executed",
        steps=700,
        learning_rate=7e-4,
        mix={
            "executed_injector": 0.13,
            "executed_solver": 0.2,
            "solver_drill": 0.13,
            "injector_drill": 0.03,
            "solver_short": 0.06,
            "solver": 0.32,
            "injector": 0.1,
            "copy": 0.03,
        },
    ),
)


class WarmStartSettings(Section):
    """Sizes and budgets. The defaults are the recipe of the carried policy."""

    seed: int = 0
    """Seed of texts, weights and batches."""

    base: str = ""
    """The model to start from, as `policy.model`. "" makes a policy from nothing, with `shape`."""

    lora_rank: int = Field(0, ge=0)
    """Rank of the adapter that is trained in place of the base's weights; 0 trains the weights."""

    adapter: str = ""
    """With lora_rank: what the adapter starts from.

    An adapter of the base, as `policy.adapter`; or a model that was trained from the base: then its
    difference from the base, at this rank. "" starts from nothing.
    """

    episodes: tuple[str, ...] = ()
    """Folders of runs that the base played. Their proven episodes join those that the teacher plays."""

    train_embeddings: bool = True
    """False keeps the embeddings, and a head that shares their weights, as they are."""

    shown_weight: float = Field(0.05, ge=0, le=1)
    """Loss weight of tokens that the policy is shown; those that it writes have 1."""

    corpus: tuple[str, ...] = CORPUS
    """Source distributions that texts are made of, as `name==version`."""

    held_out: str = HELD_OUT
    """A package that no text is made of; the policy is measured on it."""

    favoured: int = Field(13, ge=0)
    """Number of packages at the start of the corpus that are sampled three times as often.

    The 13 default ones include those of the quickstart.
    """

    functions_per_package: int = Field(500, ge=1)
    """Functions of one package at most, so that large ones do not dominate."""

    max_lines: int = Field(22, ge=2)
    """Lines of the longest function that fabricated texts break."""

    new_names: float = Field(0, ge=0, le=1)
    """Share of fabricated texts in which the package's names are made up, anew for each text.

    A pretrained policy knows public packages by heart. Where the names are new it has to copy them.
    """

    tokenizer_texts: int = Field(8000, ge=10)
    """Texts that the tokenizer is trained on."""

    shape: ShapeSettings = ShapeSettings()
    """Sizes of the model."""

    context_tokens: int = Field(3072, ge=256)
    """Context of the imitated episodes."""

    observation_tokens: int = Field(400, ge=32)
    """Tokens of the longest observation in imitated episodes."""

    turns: int = Field(12, ge=3)
    """Turns of the imitated episodes."""

    rows: int = Field(5, ge=1)
    """Rows of a batch."""

    sequence_tokens: int = Field(1536, ge=64)
    """Tokens of a row. Longer texts are left out."""

    compile: bool = True
    """
    torch.compile, where there is a C++ compiler or a GPU: slower start, faster steps. Of a base each layer is
    compiled, of a policy from nothing the whole step.
    """

    checkpoint_every_s: float = Field(120, gt=0)
    """Seconds between two checkpoints of a stage. A killed call goes on from the last one."""

    stages: tuple[StageSettings, ...] = STAGES
    """Stages of training, in order."""

    sharpen: float = Field(1.0, gt=0)
    """Factor of the saved logits. 1.6 keeps the format at temperature 1, but makes attempts alike."""

    measured: int = Field(100, ge=1)
    """Held-out texts of each kind that each stage is measured on."""

    executed: ExecuteSettings = ExecuteSettings()
    """Episodes that the teacher plays in sandboxes."""

    @model_validator(mode="after")
    def _check_base(self) -> Self:
        if self.lora_rank and not self.base:
            raise ValueError("lora_rank needs a model to start from: set base, or call it with --from MODEL")
        if self.adapter and not self.lora_rank:
            raise ValueError("adapter needs lora_rank, the rank of that adapter; or call it with --adapter")
        if self.base and any("copy" in stage.mix for stage in self.stages):
            raise ValueError(
                "texts of kind copy are for a policy made from nothing; leave copy out of each stage's mix, "
                "or use the recipe warm-start-from"
            )
        if self.episodes and not self.base:
            raise ValueError(
                "episodes needs the model that played them: set base, or call it with --from MODEL"
            )
        return self

    @property
    def draws_executed(self) -> bool:
        """True if a stage trains on played episodes."""
        return any(kind in stage.mix for stage in self.stages for kind in EXECUTED)


def read_settings(config: Path | None, overrides: Sequence[str]) -> WarmStartSettings:
    """Read a TOML file of warm-start settings, then apply `key=value` overrides.

    config: a file, or the name of a recipe that ships. Raises ConfigError.
    """
    values: dict[str, Any] = {}
    overridden: set[str] = set()  # keys that --set gave, and the sections that only it has
    if config is not None:
        config = find_recipe(config, "the warm-start settings")
        try:
            values = tomllib.loads(read_text(config, "the warm-start settings"))
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{config} is not valid TOML: {error}") from error
    for override in overrides:
        key, separator, value = override.partition("=")
        try:
            added = tomllib.loads(f"{key} = {value}")
        except tomllib.TOMLDecodeError:
            try:
                added = tomllib.loads(f"{key} = {json.dumps(value)}")
            except tomllib.TOMLDecodeError as error:
                raise ConfigError(
                    f"--set {override!r} is not key=value, for instance --set shape.layers=2"
                ) from error
        if not separator:
            raise ConfigError(f"--set {override!r} is not key=value, for instance --set shape.layers=2")
        overridden.update(faults.laid_over(values, key.strip()))
        _merge(values, added)
    try:
        return WarmStartSettings.model_validate(values)
    except ValidationError as error:
        source = str(config or "--set")
        raise ConfigError(faults.explain(error, WarmStartSettings, source, overridden)) from error


def _merge(values: dict[str, Any], added: Mapping[str, Any]) -> None:
    for key, value in added.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = value
