"""Compiled layers: the same numbers, and nothing compiled anew for packs of other lengths."""

from __future__ import annotations

import shutil

import kit
import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters
from torch.testing import assert_close

from fuserl.errors import FuserlError
from fuserl.models.checkpointing import checkpoint_activations
from fuserl.models.compiled import compile_layers
from fuserl.models.scoring import score_batch
from fuserl.tokens.collate import collate

needs_a_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs g++ on a processor")


@needs_a_compiler
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # dynamo looks at tensors between graphs
def test_packs_of_other_lengths_compile_nothing(tmp_path):
    torch._dynamo.reset()
    counters.clear()
    plain, compiled = (kit.tiny_model(dtype=torch.float32) for _ in range(2))
    names = list(compiled.state_dict())
    compile_layers(compiled)
    assert list(compiled.state_dict()) == names
    store = kit.token_store(tmp_path, kit.random_groups(8, 2, 2), longest=40)
    graphs, lengths = [], set()
    for number in range(8):
        batch = collate(store, [number], np.array(store.valid))
        lengths.add(len(batch.input_ids))
        found = []
        for model in (plain, compiled):
            model.zero_grad()
            logps = score_batch(model, batch)
            logps.sum().backward()
            found.append((logps.detach(), model.model.layers[0].self_attn.q_proj.weight.grad))
        for ours, wanted in zip(found[1], found[0], strict=True):
            assert_close(ours, wanted, rtol=1e-4, atol=1e-4)
        graphs.append(counters["stats"]["unique_graphs"])
    assert len(lengths) > 4
    assert graphs[0] > 0
    assert graphs[-1] == graphs[1], f"graphs after each pack: {graphs}"


def test_a_model_without_a_list_of_layers_is_refused():
    model = kit.tiny_model()
    model.config.num_hidden_layers = 7
    with pytest.raises(FuserlError, match="no list of decoder layers"):
        compile_layers(model)


@pytest.mark.parametrize("way", ["full", "selective"])
def test_layers_that_recompute_are_not_compiled_in_name_only(way):
    model = kit.tiny_model()
    checkpoint_activations(model, way)
    with pytest.raises(FuserlError, match="would run uncompiled"):
        compile_layers(model)
