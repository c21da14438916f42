"""ArmoRM (RLHFlow/ArmoRM-Llama3-8B-v0.1): rewards of many objectives, mixed by a gate that reads the prompt.

The code in its repository needs names that transformers 5 no longer has, and transformers' own classifier would load
the body and give it a random head. So the head stands here: at the last token a row of objectives, at the end of the
last user turn a gate; the score is their product, after a matrix that takes the objectives' bent towards length out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel, LlamaPreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from fuserl.errors import FuserlError
from fuserl.rewards.heads import loaded


class Gate(nn.Module):
    """Shares of the objectives for a prompt, from its hidden state."""

    def __init__(self, width: int, objectives: int, *, hidden: int, layers: int, temperature: float) -> None:
        super().__init__()
        widths = [width, *[hidden] * layers]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in zip(widths, [*widths[1:], objectives], strict=True))
        self.logit_scale = nn.Parameter(torch.ones(1))
        self.temperature = temperature

    def forward(self, state: Float[Tensor, "B D"]) -> Float[Tensor, "B O"]:
        """They sum to `logit_scale`."""
        for layer in self.layers[:-1]:
            state = layer(state).relu()
        return torch.softmax(self.layers[-1](state) / self.temperature, dim=-1) * self.logit_scale


class ArmoRM(LlamaPreTrainedModel):
    """The body of a Llama with that head; names of weights are the checkpoint's."""

    config_class = LlamaConfig
    gate_tokens: tuple[int, ...] = ()  # set once it is loaded

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        objectives = getattr(config, "num_objectives", 19)
        self.model = LlamaModel(config)
        self.regression_layer = nn.Linear(config.hidden_size, objectives, bias=False)
        self.reward_transform_matrix = nn.Parameter(torch.zeros(objectives, objectives), requires_grad=False)
        self.gating = Gate(
            config.hidden_size,
            objectives,
            hidden=getattr(config, "gating_hidden_dim", 1024),
            layers=getattr(config, "gating_n_hidden", 3),
            temperature=getattr(config, "gating_temperature", 10),
        )
        self.post_init()

    def forward(
        self, input_ids: Int[Tensor, "B T"], attention_mask: Int[Tensor, "B T"], **_: Any
    ) -> SequenceClassifierOutput:
        """One logit a conversation, padded on the right."""
        states = self.model(input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        rows = torch.arange(len(states), device=states.device)
        last = states[rows, attention_mask.sum(1) - 1].float()
        asked = states[rows, last_place(input_ids, self.gate_tokens)].float()
        rewards = self.regression_layer(last) @ self.reward_transform_matrix
        return SequenceClassifierOutput(logits=(self.gating(asked) * rewards).sum(-1, keepdim=True))


def last_place(ids: Int[Tensor, "B T"], pattern: Sequence[int]) -> Int[Tensor, " B"]:
    """Where the tokens of the pattern begin for the last time, in each row.

    Raises:
        FuserlError: a row does not have them.
    """
    windows = ids.unfold(1, len(pattern), 1)
    found = (windows == torch.tensor(pattern, device=ids.device)).all(-1)
    if not found.any(1).all():
        raise FuserlError(
            "a conversation has no turn of the assistant in the form that ArmoRM's gate looks for",
            where="`model.gate`",
            hint="ArmoRM reads Llama 3's chat template and no other",
        )
    places = torch.arange(found.shape[1], device=ids.device)
    return (found * places).argmax(1)


def armorm(
    path: str, *, revision: str | None, dtype: torch.dtype, trust_remote_code: bool, gate: Sequence[int]
) -> nn.Module:
    """The model, its body in the dtype and its head in float32. No code of its repository is run.

    Args:
        gate: token ids of `<|eot_id|><|start_header_id|>assistant<|end_header_id|>` and two newlines: at the first of
            them, for the last time, the prompt has been read.

    Raises:
        FuserlError: it cannot be loaded, or is no ArmoRM.
    """
    model, missing = loaded(ArmoRM, path, revision=revision, dtype=dtype)
    if missing:
        raise FuserlError(
            f"the checkpoint has no `{missing[0]}`, so it is no ArmoRM",
            where=str(path),
            hint="try `reward=reward_model`",
        )
    model.gate_tokens = tuple(gate)
    for head in (model.regression_layer, model.gating):
        head.float()
    model.reward_transform_matrix.data = model.reward_transform_matrix.data.float()
    return model
