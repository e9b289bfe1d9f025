"""A cold-started policy from nothing: corpus, tokenizer, a model that can copy, then drills and fabricated episodes of both roles.

Leaves the texts to training.fabrication and the steps to training.sft. Invariant: equal settings and corpus give equal batches;
a finished stage is not repeated.
"""

from __future__ import annotations

import json
import random
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError

from selfplay.config import Config, Section, load_config
from selfplay.errors import ArtifactError, ConfigError, EnvironmentBuildError, RepositoryError
from selfplay.repos import cache_root, fetch, parse_spec

if TYPE_CHECKING:
    from selfplay.chat import ChatFormat
    from selfplay.training.fabrication import EpisodeMaker, Package, Transcript
    from selfplay.training.sft import Document, PackedBatch

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

BOS, EOS, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Words, digits and marks apart, so that a span copied out of the middle of a line is made of the line's own tokens.
WORDS = "|".join(
    [
        r"<tool: [a-z]+>\n",
        r"\n</tool>",
        r"\n?<<<<<<< SEARCH\n",
        r"\n=======\n",
        r"\n?>>>>>>> REPLACE",
        r"\[exit \d; \d turns, ",
        r" tokens left\]",
        r"(?:grep|sed|git|bash|head) [^./\n]*",
        r"; bash /submit/test_script\.sh \| grep -m 3 '\^",
        r"/submit/[a-z_]+\.[a-z]+\n?",
        r"s/\[\^ \]\.\*/return/' ",
        r"\(' --include=\*\.py \.",
        r" \| sed -n '/def ",
        r"\(/,/:\\s\*def /p' \| head -25",
        r" (?:and|or|in|is|is not|not in|if|else|for|as) ",
        r"(?:return|if|elif|not|for|def|class|raise|while|import|from|assert|lambda|yield|with|except) ",
        r"[0-9]",
        r"[A-Za-z]+",
        r"_+",
        r"\n *",
        r" ?[^\sA-Za-z0-9_]+ ?",
        r"\s+",
    ]
)


class ShapeSettings(Section):
    """Sizes of the model; see training.copying.PolicyShape."""

    vocabulary: int = Field(1024, ge=280)
    hidden: int = Field(192, ge=16)
    layers: int = Field(4, ge=1)
    heads: int = Field(3, ge=1)
    head_dim: int = Field(64, ge=4)
    intermediate: int = Field(576, ge=16)


class StageSettings(Section):
    """Supervised steps on one mix of fabricated texts. It ends at `steps` or after `seconds`, whichever comes first."""

    name: str
    steps: int = Field(ge=1)
    seconds: float = Field(3600, gt=0)
    learning_rate: float = Field(1e-3, gt=0)
    mix: dict[str, float]  # how often each kind of text is drawn; the kinds are KINDS


class ExecuteSettings(Section):
    """Rejection fine-tuning: episodes played for real, of which those that validate or repair are kept. Off with 0 episodes."""

    episodes: int = Field(0, ge=0)
    repositories: tuple[str, ...] = ("pypi:inflection==0.5.1", "pypi:cachetools==5.5.2", "pypi:toolz==1.0.0")
    solvers: int = Field(1, ge=0)  # attempts on each accepted bug
    recipe: str = "runs/recipes/quickstart.toml"  # how they are played
    sandbox: str = "auto"
    steps: int = Field(100, ge=1)
    seconds: float = Field(600, gt=0)
    learning_rate: float = Field(3e-4, gt=0)


KINDS = ("source", "solver_drill", "injector_drill", "solver_short", "solver", "injector", "copy")
STAGES = (
    StageSettings(name="source", steps=300, learning_rate=1.1e-3, mix={"source": 0.8, "copy": 0.2}),
    StageSettings(
        name="drills",
        steps=950,
        learning_rate=1.1e-3,
        mix={"solver_drill": 0.28, "injector_drill": 0.2, "solver_short": 0.12, "solver": 0.15, "injector": 0.18, "copy": 0.07},
    ),
    StageSettings(
        name="episodes",
        steps=1800,
        learning_rate=9e-4,
        mix={"solver_drill": 0.15, "injector_drill": 0.07, "solver_short": 0.13, "solver": 0.32, "injector": 0.28, "copy": 0.05},
    ),
)


class WarmStartSettings(Section):
    """Sizes and budgets. The defaults are the recipe of the carried policy."""

    seed: int = 0
    corpus: tuple[str, ...] = CORPUS
    held_out: str = HELD_OUT
    favoured: int = Field(13, ge=0)  # the first so many of the corpus are drawn three times as often: those of the quickstart
    functions_per_package: int = Field(500, ge=1)
    max_lines: int = Field(22, ge=2)
    tokenizer_texts: int = Field(8000, ge=10)
    shape: ShapeSettings = ShapeSettings()
    context_tokens: int = Field(3072, ge=256)  # limits of the episodes to be imitated
    observation_tokens: int = Field(400, ge=32)
    turns: int = Field(10, ge=3)
    rows: int = Field(8, ge=1)
    sequence_tokens: int = Field(1024, ge=64)  # longer texts are left out
    compile: bool = True
    stages: tuple[StageSettings, ...] = STAGES
    sharpen: float = Field(1.0, gt=0)  # the saved logits times this: 1.6 keeps the format at temperature 1, and makes attempts copies
    measured: int = Field(100, ge=1)  # held-out texts of each kind
    execute: ExecuteSettings = ExecuteSettings()


# ---- tokenizer


def train_tokenizer(texts: Iterator[str], vocabulary: int) -> Any:
    """A byte-level BPE whose merges never cross the borders of `WORDS`; the three control tokens come first."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD, chat_template=CHAT_TEMPLATE, clean_up_tokenization_spaces=False)


# ---- stages


Progress = Callable[[str], None]


def warm_start(output: Path, settings: WarmStartSettings, progress: Progress = lambda _: None) -> None:
    """Make a policy in `output`: a folder that transformers loads, with MODEL_CARD.md. What an earlier call finished is kept.

    Raises RepositoryError when the corpus cannot be fetched, ConfigError for a kind of text that there is none of.
    """
    for stage in settings.stages:
        for kind in stage.mix:
            if kind not in KINDS:
                raise ConfigError(f"stage {stage.name!r} draws {kind!r}, and there is only {', '.join(KINDS)}.")
    _WarmStart(output, settings, progress).run()


@dataclass
class _WarmStart:
    output: Path
    settings: WarmStartSettings
    progress: Progress

    def run(self) -> None:
        import torch

        from selfplay.chat import ChatFormat
        from selfplay.training.copying import build_policy
        from selfplay.training.fabrication import PlayLimits

        started = time.monotonic()
        settings = self.settings
        self.work.mkdir(parents=True, exist_ok=True)
        packages = [self._package(name, 3.0 if at < settings.favoured else 1.0) for at, name in enumerate(settings.corpus)]
        held_out = [self._package(settings.held_out)]
        self.progress(f"corpus: {len(packages)} packages, {sum(len(p.functions) for p in packages)} functions that can be mutated")
        limits = PlayLimits(settings.context_tokens, settings.observation_tokens, settings.turns)
        tokenizer = self._tokenizer(packages, limits)
        chat = ChatFormat(tokenizer)
        chat.check()
        model = build_policy(self._shape(len(tokenizer)), settings.seed, tokenizer.eos_token_id, tokenizer.pad_token_id)
        unseen = {
            settings.held_out: held_out,
            "held-out functions": [replace(package, held_out=True) for package in packages[: settings.favoured or None]],
        }
        held_out_texts = {
            f"{kind}, {name}": texts
            for name, some in unseen.items()
            for kind, texts in measured_texts(
                self._maker(some, chat, limits, settings.seed + 777), settings.measured, settings.sequence_tokens
            ).items()
        }
        table: list[tuple[str, int, Mapping[str, Mapping[str, float]]]] = []
        tokens = 0
        for number, stage in enumerate(settings.stages):
            done = self.work / f"{number}-{stage.name}.pt"
            if done.exists():
                state = torch.load(done, weights_only=True)
                model.load_state_dict(state["model"])
                tokens = int(state["tokens"])
                self.progress(f"{stage.name}: done before")
            else:
                maker_seed = settings.seed * 1000 + number
                batch_at = _Batches(lambda s: self._maker(packages, chat, limits, s), stage.mix, settings, maker_seed)
                tokens += self._train(model, batch_at, stage.name, stage.steps, stage.seconds, stage.learning_rate)
                torch.save({"model": model.state_dict(), "tokens": tokens}, done)
            table.append((stage.name, tokens, measure(self._save(model, tokenizer), held_out_texts, chat)))
        if settings.execute.episodes:
            documents = executed_documents(settings.execute, self.output, settings.seed, self.progress)
            if documents:
                execute = settings.execute
                fixed = _FixedBatches(documents, settings)
                tokens += self._train(model, fixed, "executed", execute.steps, execute.seconds, execute.learning_rate)
                table.append(("executed", tokens, measure(self._save(model, tokenizer), held_out_texts, chat)))
        card = model_card(settings, [*packages, *held_out], table, sum(p.numel() for p in model.parameters()), time.monotonic() - started)
        (self.output / "MODEL_CARD.md").write_text(card, encoding="utf-8")
        self.progress(f"a policy of {sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters is in {self.output}")

    @property
    def work(self) -> Path:
        return self.output / "stages"

    def _package(self, name: str, share: float = 1.0) -> Package:
        from selfplay.training.fabrication import Package

        checkout = fetch(parse_spec(name if name.startswith((".", "/", "pypi:")) else f"pypi:{name}"), cache_root())
        return Package(name, checkout.licence, checkout.tree, self.settings.max_lines, self.settings.functions_per_package, share)

    def _maker(self, packages: Sequence[Package], chat: ChatFormat, limits: Any, seed: int) -> EpisodeMaker:
        from selfplay.training.fabrication import EpisodeMaker

        return EpisodeMaker(packages, chat, limits, random.Random(seed))

    def _shape(self, vocabulary: int) -> Any:
        from selfplay.training.copying import PolicyShape

        shape = self.settings.shape
        return PolicyShape(vocabulary, shape.hidden, shape.layers, shape.heads, shape.head_dim, shape.intermediate)

    def _tokenizer(self, packages: Sequence[Package], limits: Any) -> Any:
        from transformers import AutoTokenizer

        if (self.work / "tokenizer.json").exists():
            return AutoTokenizer.from_pretrained(self.work)
        generator = random.Random(self.settings.seed)
        texts = list(tokenizer_texts(packages, limits, self.settings.tokenizer_texts, generator))
        tokenizer = train_tokenizer(iter(texts), self.settings.shape.vocabulary)
        tokenizer.save_pretrained(self.work)
        self.progress(f"tokenizer: {len(tokenizer)} tokens from {sum(map(len, texts))} characters")
        return AutoTokenizer.from_pretrained(self.work)

    def _train(
        self, model: Any, batch_at: Callable[[int], PackedBatch], name: str, steps: int, seconds: float, learning_rate: float
    ) -> int:
        """Returns the tokens seen, padding included."""
        from selfplay.training.sft import SftProgress, SftSettings, train

        def report(step: SftProgress) -> None:
            if step.step % 25 == 0:
                rate = f"{step.tokens_per_s:.0f} tokens/s"
                self.progress(f"{name}: step {step.step}, loss {step.loss:.3f}, {step.accuracy:.1%} of action tokens right, {rate}")

        checkpoint = self.work / f"{name}.partial.pt"
        last = train(
            model,
            batch_at,
            SftSettings(
                steps=steps,
                max_seconds=seconds,
                learning_rate=learning_rate,
                warmup_steps=min(40, steps),
                weight_decay=0.05,
                compile=self.settings.compile,
                checkpoint=checkpoint,
            ),
            report,
        )
        checkpoint.unlink(missing_ok=True)
        return last.step * self.settings.rows * self.settings.sequence_tokens

    def _save(self, model: Any, tokenizer: Any) -> Any:
        """Returns the model as it was saved."""
        import copy

        import torch

        saved = copy.deepcopy(model)
        with torch.no_grad():
            # The norm stands right before the (tied) output, so its gain is an inverse temperature that lives in the weights.
            saved.model.norm.weight.mul_(self.settings.sharpen)
        saved.to(torch.bfloat16).save_pretrained(self.output)
        tokenizer.save_pretrained(self.output)
        return saved


class _Batches:
    """batch_at(step) over fabricated texts: a pure function of the step, made a chunk of steps at a time."""

    STEPS = 12

    def __init__(self, maker: Callable[[int], EpisodeMaker], mix: Mapping[str, float], settings: WarmStartSettings, seed: int) -> None:
        self._maker, self._mix, self._settings, self._seed = maker, mix, settings, seed
        self._chunk, self._batches = -1, list[Any]()

    def __call__(self, step: int) -> PackedBatch:
        from selfplay.training.sft import pack

        chunk = step // self.STEPS
        if chunk != self._chunk:
            settings = self._settings
            room = settings.rows * settings.sequence_tokens * self.STEPS
            documents = list[Any]()
            for document in fabricated(self._maker(hash((self._seed, chunk)) & 0x7FFFFFFF), self._mix, settings):
                documents.append(document)
                room -= len(document.token_ids)
                if room <= 0:
                    break
            self._batches = pack(documents, settings.rows, settings.sequence_tokens, seed=chunk)
            self._chunk = chunk
        batch: PackedBatch = self._batches[step % self.STEPS % len(self._batches)]
        return batch


class _FixedBatches:
    """batch_at(step) over given documents, shuffled anew each time round."""

    def __init__(self, documents: Sequence[Document], settings: WarmStartSettings) -> None:
        self._documents = [d for d in documents if len(d.token_ids) <= settings.sequence_tokens]
        self._settings = settings

    def __call__(self, step: int) -> PackedBatch:
        from selfplay.training.sft import pack

        epoch, batches = 0, pack(self._documents, self._settings.rows, self._settings.sequence_tokens, seed=0)
        if step >= len(batches):
            epoch, step = divmod(step, len(batches))
            batches = pack(self._documents, self._settings.rows, self._settings.sequence_tokens, seed=epoch)
        return batches[step % len(batches)]


def fabricated(maker: EpisodeMaker, mix: Mapping[str, float], settings: WarmStartSettings) -> Iterator[Document]:
    """Texts without end, of the kinds of `mix`; those too long for a row are left out."""
    kinds, shares = list(mix), list(mix.values())
    while True:
        kind = maker.random.choices(kinds, shares)[0]
        document = _document_of(maker, kind, settings)
        if len(document.token_ids) <= settings.sequence_tokens:
            yield document


def _document_of(maker: EpisodeMaker, kind: str, settings: WarmStartSettings) -> Document:
    if kind == "copy":
        return maker.copying(settings.shape.vocabulary, settings.sequence_tokens)
    return maker.source(settings.sequence_tokens) if kind == "source" else _transcript(maker, kind).document()


def _transcript(maker: EpisodeMaker, kind: str) -> Transcript:
    if kind == "solver_short":
        return maker.solver(short=True)
    made: Transcript = getattr(maker, kind)()
    return made


def tokenizer_texts(packages: Sequence[Package], limits: Any, count: int, generator: random.Random) -> Iterator[str]:
    """A quarter source files, the rest fabricated episodes as text. Plain ASCII only: 1,024 tokens have no room for more."""
    from selfplay.training.fabrication import EpisodeMaker, PlainChat

    maker = EpisodeMaker(packages, PlainChat(), limits, generator)  # type: ignore[arg-type]
    for number in range(count):
        package, function, _ = maker.draw()
        text = (
            package.shown(function.path)[:5000]
            if number % 4 == 0
            else "".join(map(str, _transcript(maker, ("injector", "solver")[number % 2]).ids))
        )
        if text.isascii():
            yield text


# ---- figures


def measured_texts(maker: EpisodeMaker, count: int, longest: int) -> dict[str, list[Transcript]]:
    """`count` texts of each kind of episode."""
    found: dict[str, list[Transcript]] = {}
    for kind in ("injector", "solver", "solver_short"):
        texts: list[Transcript] = []
        while len(texts) < count:
            text = _transcript(maker, kind)
            if len(text.ids) <= longest:
                texts.append(text)
        found[kind] = texts
    return found


def measure(model: Any, texts: Mapping[str, Sequence[Transcript]], chat: ChatFormat) -> dict[str, dict[str, float]]:
    """By kind, with every token predicted greedily from the true text before it: shares of texts whose

    `edit` (the last edit call, whole), `line` (its path and line number) and `rest` (all calls that are no edits) are right throughout,
    and `chance`, the mean probability of the edit at temperature 1.
    """
    return {kind: _measure(model, list(some), chat) for kind, some in texts.items()}


def _measure(model: Any, texts: Sequence[Transcript], chat: ChatFormat) -> dict[str, float]:
    import torch

    model.eval()
    sums = dict.fromkeys(("edit", "line", "rest", "chance"), 0.0)
    with torch.no_grad():
        for text in texts:
            logits = model(input_ids=torch.tensor([text.ids])).logits[0].float()  # (seq, vocabulary)
            logprobs = torch.log_softmax(logits[:-1], -1)
            ids = torch.tensor(text.ids[1:])
            right = [True, *(logits[:-1].argmax(-1) == ids).tolist()]
            chances = [0.0, *logprobs.gather(1, ids[:, None])[:, 0].tolist()]
            edits = [range(start, text.ids.index(chat.stop_id, start) + 1) for start in text.edits]
            last = edits[-1]
            marks = next(i for i in last if chat.decode(text.ids[last.start : i + 1]).count("\n") >= 2)
            inside = {i for edit in edits for i in edit}
            sums["edit"] += all(right[i] for i in last)
            sums["line"] += all(right[i] for i in range(last.start, marks))
            sums["rest"] += all(right[i] for i in range(len(text.ids)) if text.weight[i] >= 1 and i not in inside)
            sums["chance"] += float(torch.tensor([chances[i] for i in last]).sum().exp())
    return {name: value / max(len(texts), 1) for name, value in sums.items()}


def model_card(
    settings: WarmStartSettings,
    packages: Sequence[Package],
    table: Sequence[tuple[str, int, Mapping[str, Mapping[str, float]]]],
    parameters: int,
    seconds: float,
) -> str:
    """What the policy is, what it was made of, and what was measured of it."""
    rows = [
        f"| {name} | {tokens / 1e6:.1f}M | {kind} | {f['edit']:.0%} | {f['line']:.0%} | {f['rest']:.0%} | {f['chance']:.1%} |"
        for name, tokens, figures in table
        for kind, f in figures.items()
    ]
    sources = [f"| {p.name} | {p.licence} | {'held out' if p.name == settings.held_out else len(p.functions)} |" for p in packages]
    return "\n".join(
        [
            "# A small self-play policy",
            "",
            f"{parameters / 1e6:.2f}M parameters, Qwen3 architecture, {settings.shape.vocabulary} tokens, made from nothing by",
            f"`selfplay warm-start` (seed {settings.seed}) in {seconds / 60:.0f} minutes.",
            'It plays both roles with `prompt_style = "terse"`.',
            "",
            "## Measured on a package never trained on, and on functions held out of the favoured packages",
            "",
            "Shares of fabricated texts, each token predicted greedily from the true text before it: the edit whole, its path and line,",
            "all other calls whole; and the mean probability of the true edit at temperature 1.",
            "",
            "| after | tokens | text | edit | line | rest | chance |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
            "## Made of",
            "",
            "Source distributions, read and never run; functions of each that were mutated:",
            "",
            "| package | licence | functions |",
            "|---|---|---|",
            *sources,
            "",
        ]
    )


# ---- rejection fine-tuning


def executed_documents(execute: ExecuteSettings, model: Path, seed: int, progress: Progress) -> list[Document]:
    """Teacher episodes played in sandboxes; kept are injectors that validate and solvers that repair. Failed calls do not count."""
    from selfplay.artifact import Artifact
    from selfplay.chat import ChatFormat, load_tokenizer
    from selfplay.engines.scripted_engine import ScriptedEngine
    from selfplay.environments import Environment, prepare_environment
    from selfplay.grading import grade
    from selfplay.judging import Thresholds
    from selfplay.resources import resource
    from selfplay.roles import EpisodePlace, InjectorTask, SolverTask, play_injector, play_solver, sandbox_limits
    from selfplay.sandbox import open_backend
    from selfplay.teacher import TeacherPlayer
    from selfplay.test_runs import TestRunner
    from selfplay.validator import BugState, validate

    recipe = Path(execute.recipe)
    config: Config = load_config(recipe if recipe.exists() else resource("recipes") / recipe.name)
    limits = sandbox_limits(config)
    backend, _ = open_backend(execute.sandbox, cache_root())
    environments: list[Environment] = []
    for text in execute.repositories:
        try:
            checkout = fetch(parse_spec(text), cache_root())
            environments.append(prepare_environment(checkout, backend, config.environment, limits, cache_root(), progress))
        except (RepositoryError, EnvironmentBuildError) as error:
            progress(f"{text} is left out: {error}")
    tokenizer = load_tokenizer(str(model))
    chat = ChatFormat(tokenizer)
    engine = ScriptedEngine(TeacherPlayer([environment.tree for environment in environments], skill=1.0), tokenizer)
    runner = TestRunner(backend, config.validator, limits, {"selfplay.run": "warm-start"})
    generator = random.Random(seed)
    places = [(e, t) for e in environments for t in e.targets if t.last_line - t.first_line < config.injector.max_target_lines]
    documents: list[Document] = []
    for number in range(execute.episodes if places else 0):
        environment, target = generator.choice(places)
        thresholds = Thresholds(
            *(
                bounds[0]
                for bounds in (config.injector.min_passing_tests, config.injector.min_failing_tests, config.injector.min_changed_files)
            )
        )
        place = EpisodePlace(seed, 0, f"g{number}", 0)
        episode = play_injector(InjectorTask(environment, "direct", target, thresholds), place, engine, chat, backend, config, limits)
        try:
            artifact = Artifact.from_files(episode.submission)
        except ArtifactError:
            continue
        verdict = validate(artifact, environment, thresholds, runner, config.validator)
        if not verdict.accepted:
            progress(f"episode {number}: rejected by {verdict.failed_check}")
            continue
        documents.append(_document(episode))
        bug = BugState(artifact, 1, "", verdict.fail_to_pass, verdict.pass_to_pass)
        for member in range(execute.solvers):
            task = SolverTask(environment, f"bug-{number}", bug, verdict.failure)
            attempt = play_solver(task, EpisodePlace(seed, 0, f"g{number}", member), engine, chat, backend, config, limits)
            patch = attempt.submission.get("patch", "")
            if patch and grade(bug, patch, environment, runner, confirm=False).passed:
                documents.append(_document(attempt))
        progress(f"episode {number}: {len(documents)} texts kept")
    return documents


def _document(episode: Any) -> Document:
    from selfplay.training.fabrication import Weights
    from selfplay.training.sft import Document

    weights = [Weights.action if counts else Weights.shown for counts in episode.loss_mask]
    for turn in episode.turns:
        if turn.is_error:
            weights[turn.tokens[0] : turn.tokens[1]] = [0.0] * (turn.tokens[1] - turn.tokens[0])
    return Document(list(episode.token_ids), weights)


# ---- the command


def read_settings(config: Path | None, overrides: Sequence[str]) -> WarmStartSettings:
    """A TOML file of warm-start settings with `key=value` on top. Raises ConfigError."""
    values: dict[str, Any] = {}
    if config is not None:
        try:
            values = tomllib.loads(config.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"cannot read the warm-start settings {config}: {error}") from error
    for override in overrides:
        key, separator, value = override.partition("=")
        try:
            added = tomllib.loads(f"{key} = {value}")
        except tomllib.TOMLDecodeError:
            try:
                added = tomllib.loads(f"{key} = {json.dumps(value)}")
            except tomllib.TOMLDecodeError as error:
                raise ConfigError(f"--set {override!r} is not key=value, for instance --set shape.layers=2") from error
        if not separator:
            raise ConfigError(f"--set {override!r} is not key=value, for instance --set shape.layers=2")
        _merge(values, added)
    try:
        return WarmStartSettings.model_validate(values)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, item['loc']))}: {item['msg']} (got {item['input']!r})" for item in error.errors()]
        raise ConfigError("\n".join([f"{config or '--set'}:", *lines])) from error


def _merge(values: dict[str, Any], added: Mapping[str, Any]) -> None:
    for key, value in added.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = value


def run_warm_start(output: Path, config: Path | None, overrides: Sequence[str]) -> None:
    """The `warm-start` command."""
    warm_start(output, read_settings(config, overrides), lambda line: print(line, flush=True))
