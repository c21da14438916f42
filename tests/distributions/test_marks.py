"""Every token of real tokenizers is the bytes it adds to a text, and every text's tokens say where they are."""

from __future__ import annotations

import random

import published
import pytest

from fuserl.distributions import marks, spans
from fuserl.errors import FuserlError


@pytest.mark.parametrize("name", [name for name in published.NAMES if name not in published.LOSSY])
def test_tokens_spell_the_text_they_were_made_of(name):
    one = published.load(name)
    for text in published.TEXTS:
        if "<s>" in text:  # some tokenizers take it for a special token
            continue
        ids, _ = one.encode(text)
        spelled = b"".join(one.vocabulary.pieces[token] for token in ids)
        if len(one.vocabulary.byte_fallback):  # SentencePiece reads its own mark as a space
            text = text.replace("▁", " ")
        assert spelled in (text.encode(), b" " + text.encode())


@pytest.mark.parametrize("name", published.NAMES)
def test_every_whole_token_reads_as_its_tokenizer_decodes_it(name):
    """Step 1 of FuseChat: each id decoded alone, then without the word-boundary mark."""
    one = published.load(name)
    rng = random.Random(name)
    tokens = rng.sample(range(len(one.vocabulary)), min(len(one.vocabulary), 3000))
    compared = 0
    for token in {*tokens, *range(min(300, len(one.vocabulary)))} - one.vocabulary.special:
        decoded = one.decode(token)
        if "\ufffd" in decoded:
            continue  # a piece of a letter
        if " ⁇ " not in decoded:
            assert one.vocabulary.bare[token] == decoded.replace(" ", ""), (token, one.vocabulary.names[token])
            compared += 1
    assert compared > 700


@pytest.mark.parametrize("name", published.NAMES)
def test_spans_cover_the_text_in_order(name):
    one = published.load(name)
    rng = random.Random(1)
    for text in [*published.TEXTS, *(published.random_text(rng) for _ in range(20))]:
        ids, found = one.read(text)
        assert found.shape == (len(ids), 2)
        assert (found[:, 0] <= found[:, 1]).all()
        assert (found[1:] >= found[:-1]).all()
        assert not len(ids) or (found.min() >= 0 and found.max() <= len(text.encode()))
        if (found[:, 0] < found[:, 1]).any():
            assert set().union(*(range(*span) for span in found.tolist())) == set(range(len(text.encode())))
        if name in published.LOSSY or any(token in one.vocabulary.special for token in ids):
            continue
        inner = [place for place in range(len(ids)) if ids[place] not in one.vocabulary.special]
        for place in inner:
            piece = one.vocabulary.pieces[ids[place]]
            start, end = found[place]
            assert text.encode()[start:end].replace("▁".encode(), b" ") in (piece, piece.removeprefix(b" ")), (
                text,
                place,
            )
        assert sum(end - start for start, end in found) == len(text.encode())


@pytest.mark.parametrize("name", ["gpt_neox", "t5"])
def test_offsets_stand_where_a_normaliser_changed_the_text(name):
    one = published.load(name)
    text = "cafe\u0301 ｆｕｌｌ ﬁne"
    _, found = one.read(text)
    covered = [text.encode()[start:end].decode() for start, end in found]
    assert covered[0] in ("c", "ca", "caf", "cafe\u0301")
    assert covered[-1].strip() in text
    assert "".join(dict.fromkeys("".join(covered).replace(" ", ""))) == "".join(dict.fromkeys(text.replace(" ", "")))
    assert any("\u0301" in part for part in covered)


def test_a_slow_tokenizer_that_changes_the_text_still_says_where_its_tokens_are():
    one = published.load("sentencepiece_test")
    text = "the  ｆｕｌｌ 数学 table"
    ids, found = one.read(text)
    unknown = [place for place, token in enumerate(ids) if token == one.vocabulary.roles["unk"]]
    assert unknown
    assert any("数学".encode() in text.encode()[found[place, 0] : found[place, 1]] for place in unknown)
    last = next(place for place in range(len(ids) - 1, -1, -1) if found[place, 1] > found[place, 0])
    assert text.encode()[found[last, 0] : found[last, 1]] in b"table"


def test_pieces_of_one_letter_keep_their_own_bytes():
    for name in ("gpt2", "llama2", "rwkv"):
        one = published.load(name)
        ids, found = one.read("𓀀")
        assert len(ids) > 1
        bytes_of = [one.vocabulary.pieces[token] for token in ids if one.vocabulary.pieces[token].strip()]
        assert b"".join(bytes_of) == "𓀀".encode()
        assert found[-1].tolist()[1] == 4
        broken = [one.vocabulary.texts[token] for token in ids if one.vocabulary.pieces[token].strip()]
        assert len(set(broken)) == len(set(bytes_of))  # different bytes are different texts


def test_byte_fallback_is_the_byte_and_knows_itself():
    vocabulary = published.load("llama2").vocabulary
    token = vocabulary.names.index("<0xE4>")
    assert vocabulary.pieces[token] == b"\xe4"
    assert len(vocabulary.byte_fallback) == 256
    assert not published.load("gpt2").vocabulary.byte_fallback


def test_added_tokens_of_text_are_text_and_special_ones_are_not():
    neox = published.load("gpt_neox").vocabulary
    assert neox.pieces[neox.names.index("    ")] == b"    "
    assert neox.pieces[neox.names.index("<|endoftext|>")] == b""
    assert neox.names.index("<|endoftext|>") in neox.special
    llama = published.load("llama2").vocabulary
    assert {"bos", "eos", "unk"} <= set(llama.roles)


def test_a_special_token_covers_its_name_where_the_text_has_it():
    vocabulary = marks.of_bytes([b"a", b"b", b""], {2: "<s>"})
    assert spans.token_spans("ab", [2, 0, 1, 2], vocabulary).tolist() == [[0, 0], [0, 1], [1, 2], [2, 2]]
    assert spans.token_spans("a<s>b", [2, 0, 2, 1], vocabulary).tolist() == [[0, 0], [0, 1], [1, 4], [4, 5]]


def test_bad_inputs_are_told():
    vocabulary = marks.of_bytes([b"a"])
    with pytest.raises(FuserlError, match="half of a character"):
        spans.token_spans("\ud800", [0], vocabulary)
    with pytest.raises(FuserlError, match="token 7 is not in a vocabulary of 1"):
        spans.token_spans("a", [7], vocabulary)
    with pytest.raises(FuserlError, match="no ordinary token"):
        marks.of_strings(["<s>", None], special=[0])


def test_the_digest_tells_vocabularies_apart():
    one, other = marks.of_bytes([b"a", b"b"]), marks.of_bytes([b"b", b"a"])
    assert one.digest != other.digest
    assert one.digest == marks.of_bytes([b"a", b"b"]).digest
