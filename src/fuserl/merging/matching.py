"""Do the models fit together? Asked of headers, configurations and tokenizers, before anything is read or written."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fuserl.errors import FuserlError
from fuserl.merging.checkpoint import Weights
from fuserl.terminal import say

TOLD = 3  # names of a list that a message shows


@dataclass(frozen=True)
class Entry:
    """A tensor of the merged model."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype  # of the base
    stand_ins: Mapping[str, str]  # expert -> the tensor that is its value there: its embeddings, where its head is tied

    def of(self, model: Weights) -> Tensor:
        """Read it."""
        return model.read(self.stand_ins.get(model.label, self.name))


def entries(base: Weights, experts: Sequence[Weights]) -> list[Entry]:
    """The tensors to merge, in the order of their names.

    Raises:
        FuserlError: an expert has another architecture, vocabulary, shape, or other tensors than the base.
    """
    ties = tied_names(base)
    stand_ins: dict[str, dict[str, str]] = {}
    for expert in experts:
        _require_architecture(base, expert)
        _require_vocabulary(base, expert)
        stand_ins[expert.label] = _stand_ins(base, expert, ties)
        _require_forms(base, expert, stand_ins[expert.label], ties.keys())
    return [
        Entry(
            name,
            place.shape,
            place.dtype,
            {label: other[name] for label, other in stand_ins.items() if name in other},
        )
        for name, place in sorted(base.places.items())
    ]


def tied_names(model: Weights) -> dict[str, str]:
    """head -> embeddings, of what may be tied in this architecture.

    Raises:
        FuserlError: transformers does not know the architecture.
    """
    names = getattr(type(skeleton(model.folder)), "_tied_weights_keys", None)
    return dict(names) if isinstance(names, dict) else {}


def skeleton(folder: Path) -> Any:
    """The model of a folder's configuration, without memory.

    Raises:
        FuserlError: transformers does not know it, or only with code from its repository.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                AutoConfig.from_pretrained(folder, trust_remote_code=False), trust_remote_code=False
            )
    except Exception as error:  # of every architecture its own
        raise FuserlError(
            f"the configuration gives no causal language model ({str(error).splitlines()[0][:160]})",
            where=str(folder / "config.json"),
            hint="only architectures that transformers itself has can be merged and checked",
        ) from error


def copied(entry: Entry, base: Weights, experts: Sequence[Weights]) -> Tensor:
    """A tensor of integers or booleans, which cannot be averaged.

    Raises:
        FuserlError: it is not the same in all models.
    """
    mine = base.read(entry.name)
    for expert in experts:
        if not torch.equal(mine, entry.of(expert)):
            raise FuserlError(
                f"`{entry.name}` holds {str(entry.dtype).removeprefix('torch.')} and differs in `{expert.label}`",
                where=str(expert.folder),
                hint="whole numbers cannot be merged: bring the expert's to the base's value",
            )
    return mine


def _require_architecture(base: Weights, expert: Weights) -> None:
    for key in ("model_type", "architectures"):
        one, other = base.config.get(key), expert.config.get(key)
        if one != other:
            raise FuserlError(
                f"`{expert.label}` is another architecture: its `{key}` is {_short(other)}, the base's {_short(one)}",
                where=str(expert.folder),
                hint="weights of different architectures cannot be merged: fuse them by `fuserl train` on their responses",
            )


def _require_vocabulary(base: Weights, expert: Weights) -> None:
    """Same number of rows, and the same token behind each id that both know."""
    one, other = (_vocab_size(model.config) for model in (base, expert))
    if one != other:
        raise FuserlError(
            f"`{expert.label}` has a vocabulary of {other}, the base one of {one}",
            where=str(expert.folder),
            hint=f"bring the expert to the base's rows where its own tokens are not needed: "
            f"`model.resize_token_embeddings({one})`, `save_pretrained`; or extend the base before training",
        )
    mine, theirs = vocabulary(base.folder), vocabulary(expert.folder)
    if not mine or not theirs:
        return
    clashing = sorted((number, token) for token, number in theirs.items() if mine.get(token, number) != number)
    names = {number: token for token, number in mine.items()}
    clashing += sorted((n, token) for token, n in theirs.items() if token not in mine and n in names)
    if clashing:
        number, token = clashing[0]
        raise FuserlError(
            f"{len(clashing)} tokens have other ids in `{expert.label}`, the first: {token[:40]!r} is {number} there, "
            f"{mine.get(token, 'unknown')} in the base",
            where=str(expert.folder / "tokenizer.json"),
            hint="its rows stand for other tokens: give an expert that was trained with the base's tokenizer",
        )
    if extra := sorted(theirs.keys() - mine.keys(), key=theirs.__getitem__):
        say(
            f"caution: `{expert.label}` knows {len(extra)} tokens that the base does not ({_listed(extra)}); "
            "the merged model keeps the base's tokenizer"
        )


def vocabulary(folder: Path) -> dict[str, int]:
    """Tokens and ids of `tokenizer.json`; empty where there is none that can be read so."""
    try:
        content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        vocab = content["model"]["vocab"]
        found = dict(vocab) if isinstance(vocab, dict) else {token: number for number, (token, _) in enumerate(vocab)}
        return found | {token["content"]: token["id"] for token in content.get("added_tokens") or []}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _stand_ins(base: Weights, expert: Weights, ties: Mapping[str, str]) -> dict[str, str]:
    """Heads that are there in one model and tied in the other.

    Raises:
        FuserlError: the expert has a head of its own for which the base has no place.
    """
    found = {}
    for head, embeddings in ties.items():
        if head in base.places and head not in expert.places and embeddings in expert.places:
            found[head] = embeddings
        if head in expert.places and head not in base.places and embeddings in expert.places:
            tied = _text(expert.config).get("tie_word_embeddings", expert.config.get("tie_word_embeddings"))
            if not tied and not torch.equal(expert.read(head), expert.read(embeddings)):
                raise FuserlError(
                    f"`{expert.label}` has a head of its own (`{head}`), the base's is tied to its embeddings",
                    where=str(expert.folder),
                    hint="untie the base first: a copy whose config.json has `tie_word_embeddings: false` and whose "
                    f"weights hold the embeddings a second time, as `{head}`",
                )
    return found


def _require_forms(base: Weights, expert: Weights, stand_ins: Mapping[str, str], heads: Collection[str]) -> None:
    """Same names, shapes, and kinds of numbers; a head that its model ties anyway is looked at no more."""
    where = str(expert.folder)
    if missing := sorted(base.places.keys() - expert.places.keys() - stand_ins.keys()):
        raise FuserlError(
            f"`{expert.label}` lacks {len(missing)} tensors of the base: {_listed(missing)}",
            where=where,
            hint="it is not whole, or another model: give one that was trained from this base",
        )
    if extra := sorted(expert.places.keys() - base.places.keys() - set(heads)):
        raise FuserlError(
            f"`{expert.label}` has {len(extra)} tensors that the base lacks: {_listed(extra)}",
            where=where,
            hint="it is another model: give one that was trained from this base",
        )
    for name, place in sorted(base.places.items()):
        other = expert.places[stand_ins.get(name, name)]
        if other.shape != place.shape:
            raise FuserlError(
                f"`{name}` is {list(other.shape)} in `{expert.label}` and {list(place.shape)} in the base",
                where=where,
                hint="models of one shape can be merged: give one that was trained from this base",
            )
        if other.dtype.is_floating_point != place.dtype.is_floating_point:
            raise FuserlError(
                f"`{name}` is {_short(other.dtype)} in `{expert.label}` and {_short(place.dtype)} in the base",
                where=where,
                hint="convert one of them",
            )


def _vocab_size(config: Mapping[str, Any]) -> Any:
    return _text(config).get("vocab_size", config.get("vocab_size"))


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of a model that also sees: what it says of its text part."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name[:80]}`" for name in names[:TOLD])
    return shown + (", ..." if len(names) > TOLD else "")


def _short(value: Any) -> str:
    return f"`{str(value).removeprefix('torch.')[:80]}`"
