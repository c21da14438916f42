"""Real trained weights: the documented story comes out unpacked, packed, and after a round trip through a folder."""

from __future__ import annotations

from pathlib import Path

import kit
import numpy as np
import pytest
import stories
import torch
from torch.testing import assert_close

from fuserl.models import load
from fuserl.models import pieces as attention_pieces
from fuserl.models.generate import sample
from fuserl.models.scoring import check_model, per_token, score_batch, score_padded
from fuserl.records.schema import Message, PromptGroup, Response
from fuserl.tokens.collate import GroupBatch, collate
from fuserl.tokens.store import TokenWriter


@pytest.fixture(scope="module")
def folder() -> Path:
    return kit.shared_data() / "models" / "stories260K"


@pytest.fixture(scope="module")
def pieces(folder: Path) -> stories.Pieces:
    return stories.Pieces(folder / "tok512.bin")


@pytest.fixture(scope="module")
def model(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """Through a saved folder, as a user's target would come."""
    target = tmp_path_factory.mktemp("stories") / "model"
    stories.read_model(folder / "stories260K.bin").save_pretrained(target)
    return load.load_policy(str(target)).eval()


def pack(tmp_path: Path, prompts: list[list[int]], responses: list[list[list[int]]]) -> GroupBatch:
    """One pack of token ids."""
    writer = TokenWriter(tmp_path / f"store-{len(list(tmp_path.iterdir()))}", ["s"])
    for number, (prompt, branches) in enumerate(zip(prompts, responses, strict=True)):
        answers = tuple(Response("s", str(sample), sample) for sample in range(len(branches)))
        group = PromptGroup(f"p{number}", (Message("user", str(number)),), answers)
        writer.add(
            group, np.array(prompt, np.int32), [np.array(ids, np.int32) for ids in branches], [0] * len(branches)
        )
    store = writer.close()
    return collate(store, range(len(store)), np.array(store.valid))


def test_the_vocabulary_reads_and_writes_text(pieces):
    assert len(pieces.pieces) == 512
    for text in (stories.OPENING, " naïve\n", " 日本"):
        assert pieces.decode(pieces.encode(text)) == text


def test_the_documented_story(model, pieces):
    ((answer,),) = sample(model, [[stories.BOS]], n=1, max_new_tokens=60, temperature=0, stop_ids={2}, seed=0)
    assert pieces.decode(answer).startswith(stories.OPENING)


def test_the_same_story_chosen_by_packed_scores(model, pieces, tmp_path, monkeypatch):
    """Every token of the vocabulary is a response of one token: the best-scored one is the greedy choice."""
    monkeypatch.setattr(attention_pieces, "DENSE", 10_000)
    story = [stories.BOS]
    while len(pieces.decode(story[1:])) < len(stories.OPENING):
        with torch.no_grad():
            scores = score_batch(model, pack(tmp_path, [story], [[[token] for token in range(512)]]))
        assert_close(scores.double().exp().sum().item(), 1.0, rtol=0, atol=1e-5)
        story.append(int(scores.argmax()))
    assert pieces.decode(story[1:]) == stories.OPENING


@pytest.mark.parametrize("dense", [0, 384], ids=["a call a branch", "a call for short groups"])
def test_stories_beside_each_other_score_as_alone(model, pieces, tmp_path, monkeypatch, dense):
    monkeypatch.setattr(attention_pieces, "DENSE", dense)
    prompts = [
        [stories.BOS, *pieces.encode(text)] for text in (" Once upon a time,", " Tom had a big red ball. One day")
    ]
    answers = [
        [" there was a little girl named Lily.", " zqx!! xqz", " there was a dog."],
        [" he lost it.", " his mom said no."],
    ]
    batch = pack(tmp_path, prompts, [[pieces.encode(text) for text in texts] for texts in answers])
    check_model(model, "sdpa")
    with torch.no_grad():
        packed, padded = score_batch(model, batch), score_padded(model, batch)
        token_logps = per_token(model, batch, backend="sdpa", rows=7)
    assert_close(packed, padded, rtol=0, atol=1e-4)
    lengths = torch.bincount(batch.owner)
    story, noise = packed[0] / lengths[0], packed[1] / lengths[1]
    assert story > -1.5 > -4 > noise, "trained weights tell a story from noise"
    assert len(token_logps) == int(lengths.sum())
    assert (token_logps <= 0).all()
