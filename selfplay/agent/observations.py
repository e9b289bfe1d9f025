"""What the policy and people read of a call's output: made harmless, cut to size, with what is left. Pure."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import cache

MARKER_TOKENS = 26  # what the note on cut text costs where each character is a token


# ---- showing


def render_observation(output: str, exit_code: int, turns_left: int, tokens_left: int) -> str:
    """What the policy reads after a call: the output, then what it has left."""
    return f"{output}\n[exit {exit_code}; {turns_left} turns, {tokens_left} tokens left]"


@cache
def _is_hidden(character: str) -> bool:
    return character not in "\n\t" and unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")


def make_harmless(text: str) -> str:
    """`text` with control, escape and invisible format characters spelled out (\\x1b, \\u202e).

    So are bytes that are not UTF-8, which are lone surrogates (\\xe9).
    """
    text = text.replace("\r\n", "\n")
    hidden = {character for character in set(text) if _is_hidden(character)}
    if not hidden:
        return text
    return text.translate({ord(character): _spelled_out(ord(character)) for character in hidden})


def _spelled_out(code: int) -> str:
    byte = code - 0xDC00 if 0xDC80 <= code <= 0xDCFF else code
    return f"\\x{byte:02x}" if byte < 256 else f"\\u{code:04x}"


def cap_output(text: str, max_tokens: int, spans: Callable[[str], list[tuple[int, int]]]) -> str:
    """`text`, or its head and tail around a note on what was cut, in about `max_tokens` tokens.

    spans: for each token of a text, the characters (first, one past last) that it covers.
    """
    window = 16 * max_tokens  # no tokenizer here packs more characters than that into a token, on average
    if len(text) <= 2 * window and len(spans(text)) <= max_tokens:
        return text
    room = max(max_tokens - MARKER_TOKENS, 6)
    front, back = spans(text[:window]), spans(text[-window:])
    head = text[: front[min((room + 1) // 2, len(front)) - 1][1]]
    tail_start = max(len(text) - min(window, len(text)) + back[max(len(back) - room // 2, 0)][0], len(head))
    tail = text[tail_start:]
    whole_head, whole_tail = head.rpartition("\n")[0], tail.partition("\n")[2]
    if whole_head and whole_tail:
        cut = text.count("\n", len(whole_head), len(text) - len(whole_tail)) - 1
        return f"{whole_head}\n[{cut} lines cut]\n{whole_tail}"
    return f"{head}\n[{tail_start - len(head)} characters cut]\n{tail}"
