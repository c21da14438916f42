"""A small language model with really trained weights: its published binary read into a transformers Llama."""

from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BOS = 1
OPENING = " Once upon a time, there was a little girl named Lily. She loved to play outside in the park."


def read_model(path: Path) -> LlamaForCausalLM:
    """The checkpoint as a float32 Llama with tied embeddings, in eval mode.

    The file's rotary embedding turns neighbouring pairs of a head's channels, transformers' turns its two halves:
    the rows of the query and key projections are reordered, which changes no attention score.
    """
    content = path.read_bytes()
    width, inner, layers, heads, kv_heads, vocabulary, context = struct.unpack("<7i", content[:28])
    floats, position = torch.from_numpy(np.frombuffer(content, "<f4", offset=28).copy()), 0

    def take(*shape: int) -> torch.Tensor:
        nonlocal position
        size = int(np.prod(shape))
        position += size
        return floats[position - size : position].view(*shape)

    def halves(weight: torch.Tensor, of_heads: int) -> torch.Tensor:
        return weight.view(of_heads, -1, 2, width).transpose(1, 2).reshape(-1, width)

    head = width // heads
    state = {"model.embed_tokens.weight": take(vocabulary, width)}
    stacks = {
        "input_layernorm": take(layers, width),
        "self_attn.q_proj": take(layers, width, width),
        "self_attn.k_proj": take(layers, kv_heads * head, width),
        "self_attn.v_proj": take(layers, kv_heads * head, width),
        "self_attn.o_proj": take(layers, width, width),
        "post_attention_layernorm": take(layers, width),
        "mlp.gate_proj": take(layers, inner, width),
        "mlp.down_proj": take(layers, width, inner),
        "mlp.up_proj": take(layers, inner, width),
    }
    state["model.norm.weight"] = take(width)
    take(2, context, head // 2)  # the rotary tables, computed by transformers
    assert position == len(floats)
    for name, stack in stacks.items():
        for layer, weight in enumerate(stack):
            turned = {"self_attn.q_proj": heads, "self_attn.k_proj": kv_heads}.get(name)
            state[f"model.layers.{layer}.{name}.weight"] = halves(weight, turned) if turned else weight
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=context,
        rms_norm_eps=1e-5, tie_word_embeddings=True, bos_token_id=BOS, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.load_state_dict(state)
    return model.eval()


class Pieces:
    """The checkpoint's vocabulary: bytes and scored pieces, the best-scored neighbours merged first."""

    def __init__(self, path: Path) -> None:
        content, position = path.read_bytes(), 4
        self.pieces: list[bytes] = []
        self.scores: list[float] = []
        while position < len(content):
            score, size = struct.unpack_from("<fi", content, position)
            self.pieces.append(content[position + 8 : position + 8 + size])
            self.scores.append(score)
            position += 8 + size
        self.ids = {piece: number for number, piece in reversed(list(enumerate(self.pieces)))}

    def encode(self, text: str) -> list[int]:
        """Token ids without BOS; characters that are no piece become their bytes."""
        ids: list[int] = []
        for character in text:
            piece = character.encode()
            ids += [self.ids[piece]] if piece in self.ids else [byte + 3 for byte in piece]
        while True:
            merged = [self.ids.get(self.pieces[a] + self.pieces[b], -1) for a, b in pairwise(ids)]
            best = max(
                range(len(merged)),
                key=lambda place: self.scores[merged[place]] if merged[place] >= 0 else -np.inf,
                default=-1,
            )
            if best < 0 or merged[best] < 0:
                return ids
            ids[best : best + 2] = [merged[best]]

    def decode(self, ids: list[int]) -> str:
        """Text of some ids."""
        return b"".join(bytes([number - 3]) if 3 <= number < 259 else self.pieces[number] for number in ids).decode()


def save(folder: Path, to: Path) -> None:
    """Model and vocabulary as a Hugging Face folder: the same tokens as `Pieces.encode`."""
    pieces = Pieces(folder / "tok512.bin")
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    names += [piece.decode() for piece in pieces.pieces[len(names) :]]
    vocab = {name: number for number, name in reversed(list(enumerate(names)))}
    splits = [(name, place) for name in names[259:] for place in range(1, len(name))]
    known = [(name[:place], name[place:]) for name, place in splits if name[:place] in vocab and name[place:] in vocab]
    merges = sorted(known, key=lambda pair: -pieces.scores[vocab[pair[0] + pair[1]]])
    backend = Tokenizer(BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    named = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **named).save_pretrained(to)
    read_model(folder / "stories260K.bin").save_pretrained(to)
