"""In these tests every annotation of the package is checked at every call: axes of arrays, and plain types."""

from __future__ import annotations

import kit
import pytest
import torch
from jaxtyping import TypeCheckError

from fuserl.models.head import Head
from fuserl.records.schema import Message, PromptGroup
from fuserl.settings import compose, plain


def test_axes_of_arrays_are_compared():
    head = Head.of(kit.tiny_model())
    width = head.weight.shape[1]
    assert head.logits(torch.zeros(3, width, dtype=head.weight.dtype)).shape[0] == 3
    with pytest.raises(TypeCheckError, match="hidden"):
        head.logits(torch.zeros(3, 1, width, dtype=head.weight.dtype))


def test_arguments_and_fields_are_what_they_say():
    with pytest.raises(TypeCheckError, match="verb"):
        compose(1, [])
    with pytest.raises(TypeCheckError, match="content"):
        Message("user", 1)
    with pytest.raises(TypeCheckError, match="prompt"):
        PromptGroup("p", ("not a message",), ())


def test_what_a_function_gives_back_is_what_it_says(monkeypatch):
    monkeypatch.setattr("fuserl.settings.OmegaConf.to_container", lambda *args, **kwargs: "no dictionary")
    with pytest.raises(TypeCheckError):
        plain(compose("train", ["data=miniature"]))
