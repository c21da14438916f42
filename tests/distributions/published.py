"""Tokenizers of real models as pairs of (text -> ids, vocabulary), and strings that are hard for them."""

from __future__ import annotations

import base64
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import kit
import tiktoken

sys.path.append(str(kit.ROOT / "tests" / "tokens"))

import real_tokenizers

from fuserl.distributions import marks, spans

FAST = ("gpt2", "falcon", "gpt_neox", "olmo_dolma2", "phi3", "llama2", "mistral_v1", "mistral", "t5")
RANKED = {
    "llama3": ("llama3/tokenizer.model", real_tokenizers._NUMBERS),
    "qwen": ("qwen/qwen.tiktoken", r"\p{N}"),
}
NAMES = (*FAST, *RANKED, "rwkv", "sentencepiece_test")
LOSSY = ("t5", "sentencepiece_test", "gpt_neox")  # their normalisers or unknown tokens change texts
TEXTS = (
    "Hello, world!",
    " leading",
    "  two  spaces\n\n\ttabs\t",
    "def f(x):\n    return x ** 2  # 平方\n",
    "数学は楽しい。🙂👩‍👩‍👧 é e\u0301 ﬁ",
    "12345 + 6789 = 19134",
    "▁marks Ġ <0xE4> <s> </s> <|endoftext|>",
    "naïve café — “quotes” … ½",
    "אבג دهـ กขค हिन्दी",
    "\u0000\u0001\ufeff\u200b\u2028",
)


@dataclass(frozen=True)
class Published:
    """One tokenizer."""

    encode: Callable[[str], tuple[list[int], Any]]  # ids, and offsets in letters where it knows them
    vocabulary: marks.Vocabulary
    decode: Callable[[int], str]  # of one token alone

    def read(self, text: str) -> tuple[list[int], spans.Spans]:
        """Ids of a text and the bytes that each covers."""
        ids, offsets = self.encode(text)
        return ids, spans.token_spans(text, ids, self.vocabulary, offsets)


@lru_cache
def load(name: str) -> Published:
    """The tokenizer of that name."""
    if name in RANKED:
        return _ranked(name)
    if name == "rwkv":
        return _rwkv()
    if name == "sentencepiece_test":
        return _pieces()
    tokenizer = fast(name)

    def encode(text: str) -> tuple[list[int], Any]:
        return spans.encode(tokenizer, text)

    return Published(encode, marks.of_tokenizer(tokenizer), lambda token: tokenizer.decode([token]))


@lru_cache
def fast(name: str) -> Any:
    """A fast tokenizer of `transformers`."""
    if name == "mistral_v1":
        from transformers.models.llama import LlamaTokenizerFast

        return LlamaTokenizerFast.from_pretrained(_folder_with("mistral/tokenizer.model.v1"))
    return real_tokenizers.bare(name)


def _folder_with(file: str) -> str:
    import shutil
    import tempfile
    from pathlib import Path

    folder = tempfile.mkdtemp()  # the loader wants the file by its usual name
    shutil.copy(kit.shared_data() / "tokenizers" / file, Path(folder) / "tokenizer.model")
    return folder


def _ranked(name: str) -> Published:
    file, numbers = RANKED[name]
    lines = (kit.shared_data() / "tokenizers" / file).read_bytes().split(b"\n")
    ranks = {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in lines if line.strip()}
    special = {"<|begin_of_text|>": len(ranks), "<|end_of_text|>": len(ranks) + 1}
    made = tiktoken.Encoding(
        name,
        pat_str=real_tokenizers._SPLIT.replace("NUMBERS", numbers),
        mergeable_ranks=ranks,
        special_tokens=special,
    )
    pieces = [*sorted(ranks, key=ranks.__getitem__), b"", b""]
    vocabulary = marks.of_bytes(pieces, {token: string for string, token in special.items()})
    return Published(
        lambda text: (made.encode(text, disallowed_special=()), None), vocabulary, lambda token: made.decode([token])
    )


def _rwkv() -> Published:
    """Greedy longest match."""
    import ast

    pieces: list[bytes] = [b""]
    for line in (kit.shared_data() / "tokenizers/rwkv/rwkv_vocab_v20230424.txt").read_text("utf-8").splitlines():
        value = ast.literal_eval(line[line.index(" ") : line.rindex(" ")].strip())
        pieces.append(value.encode() if isinstance(value, str) else value)
    ids = {piece: token for token, piece in enumerate(pieces) if token}
    by_start: dict[int, set[int]] = {}
    for piece in ids:
        by_start.setdefault(piece[0], set()).add(len(piece))
    lengths = {start: sorted(sizes, reverse=True) for start, sizes in by_start.items()}

    def encode(text: str) -> tuple[list[int], None]:
        content, at, found = text.encode(), 0, []
        while at < len(content):
            piece = next(content[at : at + size] for size in lengths[content[at]] if content[at : at + size] in ids)
            found.append(ids[piece])
            at += len(piece)
        return found, None

    return Published(
        encode, marks.of_bytes(pieces, {0: "<end>"}), lambda token: pieces[token].decode("utf-8", "replace")
    )


def _pieces() -> Published:
    """A SentencePiece model as slow tokenizers hold it."""
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(model_file=str(kit.shared_data() / "tokenizers/sentencepiece_test/test_model.model"))
    names = [model.id_to_piece(token) for token in range(model.get_piece_size())]
    special = {token for token in range(len(names)) if model.is_control(token) or model.is_unknown(token)}
    vocabulary = marks.of_strings(names, special=special, roles={"unk": model.unk_id(), "bos": model.bos_id()})
    return Published(lambda text: (model.encode(text), None), vocabulary, lambda token: model.decode([token]))


def random_text(rng: random.Random) -> str:
    """Letters of all planes, runs of spaces, words, digits, marks."""
    parts = []
    for _ in range(rng.randint(0, 8)):
        kind = rng.randrange(7)
        if kind == 0:
            parts.append(rng.choice(TEXTS)[: rng.randint(1, 12)])
        elif kind == 1:
            parts.append(chr(rng.choice([rng.randrange(0x20, 0x250), rng.randrange(0x3000, 0xD7FF)])))
        elif kind == 2:
            parts.append(chr(rng.randrange(0x10000, 0x1FFFF)))
        elif kind == 3:
            parts.append(rng.choice(" \n\t\r") * rng.randint(1, 5))
        elif kind == 4:
            parts.append(str(rng.randrange(10 ** rng.randint(1, 6))))
        else:
            parts.append(rng.choice([" the", "ing", " token", "Alignment", " of", "<s>", "e\u0301", "▁", ".", ","]))
    return "".join(parts)
