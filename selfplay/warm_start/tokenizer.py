"""Trains the policy's tokenizer: a byte-level BPE whose tokens end where the texts end that an edit copies.

Leaves its training texts to `texts`. Invariant: the three control tokens have the first ids, and no
token crosses a border of `WORDS`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

BOS, EOS, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Words, single digits and marks are separate, so that a part of a line has the same tokens as inside the
# line.
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


def train_tokenizer(texts: Iterator[str], vocabulary: int) -> Any:
    """A byte-level BPE of `vocabulary` tokens. Returns a transformers tokenizer."""
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
    return fast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
