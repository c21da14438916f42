"""How the next token is drawn, as vLLM draws it: what a request asks for decides, and one number in [0, 1).

Penalties, then temperature, then min-p, top-k and top-p, each on what the one before it left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

GREEDY = 1e-5  # temperatures below it are greedy
CANDIDATES = 1024  # tokens in which a nucleus is looked for first
ELEMENTS = 1 << 25  # logits worked on at a time


class Drawing(NamedTuple):
    """How one sequence draws. The defaults draw from the model's distribution as it is."""

    temperature: float = 1.0  # 0: greedy
    top_k: int = 0  # 0: no limit
    top_p: float = 1.0  # 1: no nucleus
    min_p: float = 0.0  # 0: no floor
    repetition_penalty: float = 1.0  # 1: none
    presence_penalty: float = 0.0  # off the logits of tokens that the answer holds; 0: none
    frequency_penalty: float = 0.0  # off the same, for each time; 0: none


@dataclass(frozen=True)
class Rules:
    """How each of B sequences draws, [B] each; None where no sequence asks for it."""

    temperature: Float[Tensor, " B"]
    top_k: Int[Tensor, " B"] | None
    top_p: Float[Tensor, " B"] | None
    min_p: Float[Tensor, " B"] | None
    repetition_penalty: Float[Tensor, " B"] | None
    presence_penalty: Float[Tensor, " B"] | None
    frequency_penalty: Float[Tensor, " B"] | None
    greedy: bool  # all of them are

    def part(self, rows: slice) -> Rules:
        """Those of some sequences."""

        def of(column: Tensor | None) -> Tensor | None:
            return None if column is None else column[rows]

        limits = of(self.top_k), of(self.top_p), of(self.min_p)
        penalties = of(self.repetition_penalty), of(self.presence_penalty), of(self.frequency_penalty)
        return Rules(self.temperature[rows], *limits, *penalties, self.greedy)

    @property
    def counting(self) -> bool:
        """Whether it matters which tokens an answer holds."""
        return self.presence_penalty is not None or self.frequency_penalty is not None


def rules_of(drawings: Sequence[Drawing], device: torch.device) -> Rules:
    """The table of some sequences' settings."""

    def column(values: Sequence[float], off: float, dtype: torch.dtype = torch.float32) -> Tensor | None:
        """[B]; None where no sequence has the setting on, so that nothing is computed for it."""
        return None if all(value == off for value in values) else torch.tensor(values, dtype=dtype, device=device)

    temperature, top_k, top_p, min_p, repetition, presence, frequency = zip(*drawings, strict=True)
    return Rules(
        torch.tensor(temperature, dtype=torch.float32, device=device),
        column(top_k, 0, torch.int64),
        column(top_p, 1.0),
        column(min_p, 0.0),
        column(repetition, 1.0),
        column(presence, 0.0),
        column(frequency, 0.0),
        all(value < GREEDY for value in temperature),
    )


def drawn(
    logits: Float[Tensor, "B V"],
    ids: Int[Tensor, "B W"],
    rules: Rules,
    numbers: Float[Tensor, " B"],
    said: Int[Tensor, " B"] | None = None,
) -> Int[Tensor, " B"]:
    """The next token of each sequence.

    Args:
        ids: prompt and answer so far, which the repetition penalty looks at; padding repeats a row's own tokens.
        numbers: one in [0, 1) a sequence; the token is where the cumulated probabilities, in order of token ids, pass it.
        said: tokens of each answer so far, which are a row's last; presence and frequency penalties look at these.
            None: none.
    """
    said = torch.zeros_like(ids[:, 0]) if said is None else said
    rows = max(1, ELEMENTS // logits.shape[-1])
    parts = [slice(start, start + rows) for start in range(0, len(logits), rows)]
    return torch.cat(
        [_drawn(logits[part].float(), ids[part], rules.part(part), numbers[part], said[part]) for part in parts]
    )


def _drawn(logits: Tensor, ids: Tensor, rules: Rules, numbers: Tensor, said: Tensor) -> Tensor:
    if rules.repetition_penalty is not None:
        logits = penalised(logits, ids, rules.repetition_penalty)
    if rules.counting:
        logits = less_of_the_said(logits, times_said(ids, said, logits.shape[-1]), rules)
    best = logits.argmax(-1)
    if rules.greedy:
        return best
    greedy = rules.temperature < GREEDY
    scaled = logits / torch.where(greedy, 1.0, rules.temperature)[:, None]
    weights = allowed(torch.softmax(scaled, -1), rules)
    precise = torch.float32 if weights.device.type == "mps" else torch.float64
    cumulated = weights.cumsum(-1, dtype=precise)
    wanted = numbers.to(weights.device, precise)[:, None] * cumulated[:, -1:]
    token = torch.searchsorted(cumulated, wanted, right=True).squeeze(1).clamp_(max=logits.shape[-1] - 1)
    return torch.where(greedy, best, token)


def penalised(
    logits: Float[Tensor, "B V"], ids: Int[Tensor, "B W"], penalty: Float[Tensor, " B"]
) -> Float[Tensor, "B V"]:
    """Logits of tokens that stand in the sequence, divided by the penalty where positive, else multiplied."""
    seen = logits.gather(1, ids)
    return logits.scatter(1, ids, torch.where(seen > 0, seen / penalty[:, None], seen * penalty[:, None]))


def less_of_the_said(logits: Float[Tensor, "B V"], times: Float[Tensor, "B V"], rules: Rules) -> Float[Tensor, "B V"]:
    """Logits less the frequency penalty for every time a token was said, and the presence penalty once."""
    if rules.frequency_penalty is not None:
        logits = logits - rules.frequency_penalty[:, None] * times
    return logits if rules.presence_penalty is None else logits - rules.presence_penalty[:, None] * (times > 0)


def times_said(ids: Int[Tensor, "B W"], said: Int[Tensor, " B"], size: int) -> Float[Tensor, "B V"]:
    """How often each of `size` tokens stands among the last `said` of its row."""
    window = ids[:, max(0, ids.shape[1] - int(said.max())) :]
    places = torch.arange(window.shape[1], 0, -1, device=ids.device)
    inside = (places <= said[:, None]).float()
    return torch.zeros(len(ids), size, device=ids.device).scatter_add_(1, window, inside)


def allowed(weights: Float[Tensor, "B V"], rules: Rules) -> Float[Tensor, "B V"]:
    """Probabilities with zeros where a token may not be drawn; what is left is not scaled up again."""
    if rules.min_p is not None:
        weights = weights.masked_fill(weights < rules.min_p[:, None] * weights.amax(-1, keepdim=True), 0.0)
    if rules.top_k is not None:
        size = weights.shape[-1]
        k = torch.where(rules.top_k > 0, rules.top_k, size).clamp(max=size)
        largest = weights.topk(int(k.max()), dim=-1).values
        weights = weights.masked_fill(weights < largest.gather(1, k[:, None] - 1), 0.0)
    return weights if rules.top_p is None else nucleus(weights, rules.top_p)


def nucleus(
    weights: Float[Tensor, "B V"], top_p: Float[Tensor, " B"], candidates: int = CANDIDATES
) -> Float[Tensor, "B V"]:
    """The most probable tokens of which those before hold less than `top_p` of the whole.

    They are looked for among a few candidates, and among all where these do not hold enough.
    """
    enough = top_p[:, None] * weights.sum(-1, keepdim=True)
    values, places = weights.topk(min(candidates, weights.shape[-1]), dim=-1)
    before = values.cumsum(-1) - values
    kept = torch.zeros_like(weights).scatter_(1, places, values.masked_fill(before >= enough, 0.0))
    kept = torch.where(top_p[:, None] < 1, kept, weights)
    missed = (top_p < 1) & (before[:, -1] + values[:, -1] < enough[:, 0])
    if candidates < weights.shape[-1] and missed.any():
        kept[missed] = nucleus(weights[missed], top_p[missed], weights.shape[-1])
    return kept
