"""Sampling with the model in memory, for probes and small evaluations; large jobs belong to an engine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fuserl.errors import FuserlError

ROWS = 512  # sequences decoded together


@torch.no_grad()
def sample(
    model: Any,
    prompts: Sequence[list[int]],
    *,
    n: int,
    max_new_tokens: int,
    temperature: float,
    stop_ids: set[int],
    seed: int,
    agree: Callable[[Tensor], Tensor] | None = None,
) -> list[list[list[int]]]:
    """`n` answers a prompt, as token ids that end with the stop token where one came.

    Prompts of one length are decoded together, so nothing is padded. Temperature 0 is greedy. These arguments alone
    decide: the model's `generation_config` is not read, and the global random state is left as it was.

    Args:
        agree: what several processes that decode together make of the tokens that each has drawn.

    Raises:
        FuserlError: a prompt has no tokens.
    """
    if empty := [index for index, prompt in enumerate(prompts) if not len(prompt)]:
        raise FuserlError(
            f"{len(empty)} of {len(prompts)} prompts have no tokens to continue, the first is number {empty[0]}",
            hint="give every prompt at least a token: a chat template, or the tokenizer's first token",
        )
    by_length = defaultdict(list)
    for index, prompt in enumerate(prompts):
        by_length[len(prompt)] += [index] * n
    answers: list[list[list[int]]] = [[] for _ in prompts]
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    was_training = model.training
    model.eval()
    try:
        for _, indices in sorted(by_length.items()):
            for start in range(0, len(indices), ROWS):
                part = indices[start : start + ROWS]
                ids = torch.tensor([prompts[index] for index in part], device=device)
                with torch.compiler.set_stance("force_eager"):  # every step of decoding has another shape
                    decoded = _decode(model, ids, max_new_tokens, temperature, stop_ids, generator, agree)
                for index, row in zip(part, decoded, strict=True):
                    answers[index].append(row)
    finally:
        model.train(was_training)
    return answers


def _decode(
    model: Any,
    ids: Tensor,
    max_new_tokens: int,
    temperature: float,
    stop_ids: set[int],
    generator: torch.Generator,
    agree: Callable[[Tensor], Tensor] | None,
) -> list[list[int]]:
    stops = torch.tensor(sorted(stop_ids), device=ids.device)
    finished = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    whole, given, cache, chosen = ids, ids, None, []
    for _ in range(max_new_tokens):
        out = model(input_ids=given, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits = out.logits[:, -1].float()
        if temperature > 0:
            token = torch.multinomial(torch.softmax(logits / temperature, -1), 1, generator=generator)
        else:
            token = logits.argmax(-1, keepdim=True)
        if agree:
            token = agree(token)
        chosen.append(torch.where(finished[:, None], -1, token))
        finished |= torch.isin(token.squeeze(1), stops)
        if finished.all():
            break
        whole, cache = torch.cat([whole, token], dim=1), getattr(out, "past_key_values", None)
        given = whole if cache is None else token  # states of another kind than keys and values are computed anew
    rows = torch.cat(chosen, dim=1).tolist() if chosen else [[] for _ in range(len(ids))]
    return [[token for token in row if token >= 0] for row in rows]
