"""Messages to token ids and back, for any chat template: the first prompt, and the bridge after each action.

A conversation is only extended, never tokenised again. The template's own pieces are found once
(`chat_template`); only these may become control tokens. Invariant: no content ever yields a control token.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfplay.agent.chat_template import ChatTemplate, Frame, Listing
from selfplay.errors import EngineError
from selfplay.runtime.resources import resource

if TYPE_CHECKING:
    from selfplay.agent.tools import Toolbox
    from selfplay.settings.learning import PolicySettings
    from selfplay.settings.playing import AgentSettings


def policy_path(model: str, named_by: str = "policy.model") -> str:
    """The folder or model id for transformers.

    "carried" is the small policy in the package. A name of PUBLISHED is fetched, and a GGUF file converted,
    at the first call. named_by: the setting or option that holds `model`, for errors. Raises EngineError and
    PrerequisiteError.
    """
    from selfplay.engines.published_models import PUBLISHED, gguf_folder, published_folder

    if model == "carried":
        folder = resource("data/policy")
        if not (folder / "config.json").is_file():
            raise EngineError(
                f"there is no carried policy at {folder}. "
                "Make one with `selfplay warm-start`, or set policy.model."
            )
        return str(folder)
    if model in PUBLISHED:
        return str(published_folder(model))
    # As transformers: what is there is no id. Path.exists raises an error on long names. An id has one slash.
    is_path = model.startswith((".", "/", "~")) or model.endswith(".gguf") or model.count("/") > 1
    if is_path or os.path.exists(model):  # noqa: PTH110
        folder = Path(model).expanduser()
        if folder.suffix == ".gguf":
            return str(gguf_folder(folder, named_by))
        if not (folder / "config.json").is_file():
            raise EngineError(
                f"{named_by} = {model!r}: no config.json at {folder.absolute()}; "
                "give a model folder as transformers saves it."
            )
        return str(folder)
    return model


def load_tokenizer(model: str, named_by: str = "policy.model") -> Any:
    """The tokenizer of a folder, an id, or "carried". named_by: see `policy_path`. Raises EngineError."""
    from transformers import AutoTokenizer  # heavy: loads where it is used

    path = policy_path(model, named_by)
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise EngineError(
            f"no tokenizer can be loaded from {path!r}: {error}. Set {named_by} to a model folder or id."
        ) from error


def open_chat(model: str, policy: PolicySettings, agent: AgentSettings) -> ChatFormat:
    """The chat format of `model` as the settings want it.

    model: a folder or id with the template that is played; `policy` gives the template's arguments. Raises
    EngineError, and PartError for a tool or a format that cannot be used.
    """
    return chat_format(load_tokenizer(model), policy, agent)


def chat_format(tokenizer: Any, policy: PolicySettings, agent: AgentSettings) -> ChatFormat:
    """The chat format of a tokenizer, as `open_chat`."""
    from selfplay.agent.tools import toolbox

    return ChatFormat(tokenizer, policy.template_args, toolbox(agent))


class ChatFormat:
    """The chat template of one tokenizer, as token pieces. It never changes, so threads may share it.

    arguments: the template's own, like enable_thinking. tools: those of the episodes, and how calls are
    written; by default the standard ones.
    """

    def __init__(
        self, tokenizer: Any, arguments: Mapping[str, Any] | None = None, tools: Toolbox | None = None
    ) -> None:
        from selfplay.agent.tools import STANDARD

        self.tools: Toolbox = tools or STANDARD
        self._tokenizer = tokenizer
        self._name = str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)
        if getattr(tokenizer, "chat_template", None) is None:
            raise EngineError(
                f"the tokenizer of {self._name} has no chat template; "
                "use an instruction-tuned model, or add one."
            )
        self._trusted, plain = _backends(tokenizer, self._name)
        # Each text is encoded once: a group's members share their prompt, and an observation is measured, cut
        # and sent.
        self._encoded = lru_cache(maxsize=32)(partial(plain.encode, add_special_tokens=False))
        self._control = {
            id_ for id_, token in self._trusted.get_added_tokens_decoder().items() if token.content.strip()
        }

        given = self.tools
        listing = Listing(arguments or {}, given.answering, given.schemas, given.marks)
        self._template = ChatTemplate(tokenizer, self._name, listing)
        self._start = [self._encode_template(piece) for piece in self._template.first]
        self._start_with_system = [self._encode_template(piece) for piece in self._template.with_system or ()]
        closing = self._template.user.before
        closing_ids = self._encode_template(closing)
        if not closing_ids or closing_ids[0] not in self._control:
            raise EngineError(
                f"the chat template of {self._name} closes an assistant's turn with "
                f"{closing!r}, which no special token begins. "
                "Use a template that ends a turn with one."
            )
        self.stop_id = closing_ids[0]
        self._bridges = self._find_bridges()
        eos = tokenizer.eos_token_id
        self.stop_ids = frozenset({self.stop_id} if eos is None else {self.stop_id, int(eos)})

    @property
    def lists_tools(self) -> bool:
        """True if the template itself describes the tools and the format of calls."""
        return self._template.lists_tools

    def role_of(self, tool: str) -> str:
        """The role of a message that answers a call of `tool`; "" is a reply without a call."""
        return "tool" if tool and tool in self._bridges else "user"

    def _find_bridges(self) -> dict[str, tuple[Frame, list[int], list[int]]]:
        """By tool: the frame of its answer, and the frame's ids without the stop token. "": the user's."""
        bridges = {}
        for tool, frame in {"": self._template.user, **self._template.tools}.items():
            ids = self._encode_template(frame.before)
            if ids[0] != self.stop_id:  # a template that ends turns in several ways: the user's is known
                continue
            bridges[tool] = (frame, ids[1:], self._encode_template(frame.after))
        return bridges

    def start(self, system: str, user: str) -> list[int]:
        """Token ids of the first prompt, up to where the assistant begins. An empty `system` is left out.

        Where the template has no system role, or shows no such text, the text opens the user's.
        """
        texts = [message["content"] for message in self.messages(system, user)]
        pieces = self._start if len(texts) == 1 else self._start_with_system
        ids = list(pieces[0])
        for text, piece in zip(texts, pieces[1:], strict=True):
            ids += [*self.encode(text), *piece]
        return ids

    def messages(self, system: str, user: str) -> list[dict[str, str]]:
        """The messages that `start` encodes, as the template shows them."""
        template = self._template
        if system and template.with_system:
            return [
                {"role": "system", "content": template.trim_system(system)},
                {"role": "user", "content": template.trim_user(user)},
            ]
        text = f"{system}\n\n{user}" if system else user
        return [{"role": "user", "content": template.trim_user(text)}]

    def extend(self, observation: str, tool: str = "") -> list[int]:
        """Token ids after an assistant's turn: the observation as a message, and the next opening.

        tool: the one that was called. Its answer has the role "tool" where the template has that role; else,
        and for "", the user's.
        """
        frame, before, after = self._bridges.get(tool) or self._bridges[""]
        return [*before, *self.encode(frame.shown(observation)), *after]

    def read(self, text: str) -> tuple[str, list[tuple[str, str]]]:
        """Take the text of a whole prompt apart, as token ids decode it.

        Returns the first user text, and the answers with their observations; the last answer is still to be
        written. Raises ValueError if it is no prompt of this template.
        """
        pieces = self._template.with_system
        is_own_role = pieces is not None and pieces[0] != self._template.first[0]
        if pieces and is_own_role and text.startswith(pieces[0]) and pieces[1] in text:
            begin, end = text.index(pieces[1]) + len(pieces[1]), pieces[2]
        elif text.startswith(self._template.first[0]):
            begin, end = len(self._template.first[0]), self._template.first[1]
        else:
            raise ValueError(f"this is no prompt of the chat template of {self._name}: {text[:60]!r}")
        task, _, rest = text[begin:].partition(end)
        # A longer frame may begin with a shorter one.
        frames = sorted((f for f, _, _ in self._bridges.values()), key=lambda f: -len(f.before))
        pattern = "|".join(f"{re.escape(frame.before)}(.*?){re.escape(frame.after)}" for frame in frames)
        turns, at = [], 0
        for found in re.finditer(pattern, rest, re.DOTALL):
            number = found.lastindex or 1
            turns.append((rest[at : found.start()], frames[number - 1].read(found[number])))
            at = found.end()
        return task, turns

    def encode(self, text: str) -> list[int]:
        """`text` as ordinary text: whatever it spells, no control token comes of it."""
        ids: list[int] = self._encoded(text).ids
        if self._control.isdisjoint(ids):
            return ids
        # If the vocabulary holds a control token's spelling as an ordinary word, only single characters are
        # safe.
        ids = [id_ for character in text for id_ in self._encoded(character).ids]
        return [id_ for id_ in ids if id_ not in self._control]

    def encode_call(self, text: str) -> list[int]:
        """`text` as a policy would write it: the tags of the call, alone on their lines, are control tokens
        where the vocabulary has them. All else is ordinary text.
        """
        if not self.tools.tags:
            return self.encode(text)
        tags = "|".join(map(re.escape, self.tools.tags))
        pieces = re.split(rf"^({tags})$", text, flags=re.MULTILINE)
        return [
            id_
            for number, piece in enumerate(pieces)
            for id_ in (self._encode_template(piece) if number % 2 else self.encode(piece))
        ]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """For each token of `encode(text)`, the characters (first, one past last) that it covers."""
        offsets: list[tuple[int, int]] = self._encoded(text).offsets
        return offsets

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an action. Only a closing stop token is removed, so that tool tags stay.

        It begins with the mark of reasoning if the prompt opened that, so that the text shows what it is.
        """
        kept = list(ids)
        if kept and kept[-1] in self.stop_ids:
            kept.pop()
        text: str = self._trusted.decode(kept, skip_special_tokens=False)
        return self._template.opened + text

    def check(self) -> None:
        """Raise EngineError, with the reason, unless a conversation grows only at its end, and content yields
        no control token.
        """
        self._template.check()
        for token in self._trusted.get_added_tokens_decoder().values():
            if not self._control.isdisjoint(self.encode(f"a{token.content}\n{token.content}b")):
                raise EngineError(
                    f"the tokenizer of {self._name} makes the control token {token.content!r} "
                    "from ordinary text."
                )

    def _encode_template(self, text: str) -> list[int]:
        ids: list[int] = self._trusted.encode(text, add_special_tokens=False).ids
        return ids


def _backends(tokenizer: Any, name: str) -> tuple[Any, Any]:
    """Two private copies of the tokenizer: one reads control tokens, one knows none."""
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise EngineError(
            f"the tokenizer of {name} is not a fast one; the `tokenizers` library must be able to load it."
        )
    description = json.loads(backend.to_str())
    description |= {"truncation": None, "padding": None}
    trusted = Tokenizer.from_str(json.dumps(description))
    # Runs of blanks are added tokens in some vocabularies, and harmless.
    description["added_tokens"] = [
        token for token in description["added_tokens"] if not token["content"].strip()
    ]
    description["post_processor"] = None
    return trusted, Tokenizer.from_str(json.dumps(description))
