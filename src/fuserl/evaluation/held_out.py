"""A model and prompts that it never saw: graded answers, and how well it reads the best responses."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from omegaconf import OmegaConf

from fuserl import settings
from fuserl.errors import FuserlError
from fuserl.evaluation.answering import answers, score_named, summary_of_test, write_answers
from fuserl.models.kernels import checked_backend
from fuserl.models.load import check_vocabulary, load_policy, load_tokenizer
from fuserl.models.scoring import Packed, Padded, Scoring, rows_within, table
from fuserl.objectives.pairing import best_response
from fuserl.records.formats import ReadReport, splits_of
from fuserl.records.journal import locked
from fuserl.records.manifest import write_text_atomically
from fuserl.records.reading import Side
from fuserl.sources.source import content_of
from fuserl.sources.transformers import on_device
from fuserl.terminal import bar, say
from fuserl.tokens.collate import collate
from fuserl.tokens.plan import GroupCosts, fitting, next_fit
from fuserl.tokens.scores import scores_of
from fuserl.tokens.store import TokenStore
from fuserl.tokens.templates import load_template
from fuserl.tokens.tokenize import tokens_of

FREE = ("output", "cache", "device", "max_tokens", "progress_bar")
LOGITS = 0.5  # GiB that logits may take


def held_out(given: dict[str, Any]) -> Path:
    """Evaluate on the split of a data set; a finished folder is left alone, an unfinished one is made anew.

    Returns:
        The folder: `test.jsonl`, `metrics.csv`, `summary.json`, `config.yaml`, as a run's, so that `compare` reads it.

    Raises:
        FuserlError: data, model or settings cannot work.
    """
    score = score_named(given["score"], "score")
    if isinstance(given["samples"], bool) or not isinstance(given["samples"], int) or given["samples"] < 0:
        raise FuserlError(f"`samples` is {given['samples']!r}", where="`samples`", hint="a whole number, 0 or more")
    settings.require_whole(1, max_new_tokens=given["max_new_tokens"], max_tokens=given["max_tokens"])
    if not isinstance(given["temperature"], int | float) or not 0 <= given["temperature"] < math.inf:
        raise FuserlError(
            f"`temperature` is {given['temperature']!r}", where="`temperature`", hint="a number, 0 (greedy) or more"
        )
    side = _side(given)
    folder = Path(given["output"] or Path("runs") / settings.digest("evaluate", given, FREE)).expanduser()
    about = settings.decisive(given, FREE) | {"content": content_of(given["model"]), "data_content": side.content}
    if _finished(folder, about):
        say(f"{folder} is finished already; nothing to do")
        return folder
    transformers.utils.logging.disable_progress_bar()  # the verb has its own
    tokenizer = load_tokenizer(given["model"], revision=given["revision"])
    check_vocabulary(given["model"], tokenizer)
    template = load_template(tokenizer, chat_template=given["chat_template"], date_string=given["date_string"])
    store = tokens_of(side, template, Path(given["cache"]).expanduser() / "tokens", show=given["progress_bar"])
    if skipped := store.notes["skipped"]:
        say(f"left out: {len(skipped):,} bad rows, the first: {': '.join(skipped[0])}")
    model = load_policy(given["model"], revision=given["revision"], dtype=given["dtype"], packing=given["packing"])
    model = on_device(model, given["device"]).eval()
    with locked(folder):
        read = _read(model, store, given)
        groups = list(side.groups(ReadReport())) if given["samples"] else []
        asked = {key: given[key] for key in ("samples", "max_new_tokens", "temperature", "seed")}
        rows = answers(model, template, groups, score=score, **asked) if groups else []
        _write(folder, given, about, read, rows)
    told = f"NLL {read['nll']:.4f} nats a token" + (f", score {_mean(rows):.4f}" if rows and score else "")
    say(f"done: {told}; {folder}")
    return folder


def _side(given: Mapping[str, Any]) -> Side:
    """The split's groups.

    Raises:
        FuserlError: the data has splits, and not this one.
    """
    data, split = given["data"], given["split"]
    if (known := splits_of(data["path"])) and split not in known:
        raise FuserlError(
            f"the data has no split `{split}`", where="`split`", hint=f"it has {', '.join(sorted(known))}"
        )
    sources = tuple(data["sources"]) if data["sources"] else None
    low, high = _part(data["part"])
    how = {"form": data["format"], "on_bad_row": data["on_bad_row"], "sources": sources, "limit": data["limit"]}
    return Side(path=str(data["path"]), split=split, held_out=None, part=(low, high), **how)


def _part(given: Any) -> tuple[float, float]:
    ends = [end for end in given if isinstance(end, int | float)] if isinstance(given, list) else []
    if len(ends) != 2 or not 0 <= ends[0] < ends[1] <= 1:
        raise FuserlError(
            f"`data.part` is {given!r}", where="`data.part`", hint="two numbers from 0 to 1, the first smaller"
        )
    return ends[0], ends[1]


def _finished(folder: Path, about: Mapping[str, Any]) -> bool:
    """Whether this very evaluation is here.

    Raises:
        FuserlError: the folder holds something else.
    """
    if not (folder / "summary.json").exists():
        return False
    before = json.loads((folder / "summary.json").read_text(encoding="utf-8")).get("about")
    if before != json.loads(json.dumps(about, default=str)):
        raise FuserlError(
            "the folder holds something else: another model, other data or settings",
            where=str(folder),
            hint="give another folder with `output=DIR`, or delete this one to start anew",
        )
    return True


@torch.no_grad()
def _read(model: Any, store: TokenStore, given: Mapping[str, Any]) -> dict[str, float]:
    """Nats a token over the best response of each prompt (the first, where nothing is scored), and how many there are.

    Raises:
        FuserlError: no prompt is short enough.
    """
    scores = scores_of(store)
    used = np.zeros(scores.valid.shape, dtype=bool)
    used[np.arange(len(used)), best_response(scores.rewards, scores.valid).numpy()] = True
    rows = fitting(store, used, max_length=given["data"]["max_length"], on_too_long="drop").keep
    if not len(rows):
        raise FuserlError("no prompt is short enough", where="`data.max_length`", hint="raise it")
    if len(rows) < len(store):
        say(f"left out: {len(store) - len(rows):,} prompts longer than {given['data']['max_length']} tokens")
    nats, tokens = 0.0, 0
    for part in _scored(model, store, used, rows, given):
        nats -= float(torch.where(part.valid, part.policy_logps, 0).sum())
        tokens += int(torch.where(part.valid, part.num_tokens, 0).sum())
    return {"nll": nats / max(1, tokens), "prompts_read": len(rows), "tokens_read": tokens}


def _scored(
    model: Any, store: TokenStore, used: np.ndarray, rows: np.ndarray, given: Mapping[str, Any]
) -> Iterator[Any]:
    device, scoring = next(model.parameters()).device, _scoring(model, given["packing"])
    packs = [rows[members] for members in next_fit(GroupCosts.of(store, used, rows).tokens, given["max_tokens"])]
    with bar("reading", lambda: len(packs), show=given["progress_bar"]) as told:
        for number, pack in enumerate(packs):
            batch = collate(store, pack.tolist(), used).to(device)
            yield table(batch, scoring.score(model, batch))
            told(number + 1)


def _scoring(model: Any, packing: str) -> Scoring:
    if packing == "padded":
        return Padded()
    with torch.enable_grad():  # a kernel proves its gradients too
        return Packed(checked_backend(model, "auto"), rows_within(LOGITS, model))


def _mean(rows: list[dict[str, Any]]) -> float:
    return float(np.mean([row["score"] for row in rows]))


def _write(
    folder: Path,
    given: Mapping[str, Any],
    about: Mapping[str, Any],
    read: Mapping[str, float],
    rows: list[dict[str, Any]],
) -> None:
    """A folder like a run's; `summary.json` last, whose presence says that it is complete."""
    write_text_atomically(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(dict(given))))
    write_text_atomically(folder / "metrics.csv", f"step,test/nll\n0,{read['nll']!r}\n")
    if rows:
        write_answers(folder / "test.jsonl", rows)
    summary = {
        "verb": "evaluate",
        "seed": given["seed"],
        "model": given["model"],
        "test": {**(summary_of_test(rows, str(given["split"])) if rows else {"split": given["split"]}), **read},
        "about": about,
    }
    write_text_atomically(folder / "summary.json", json.dumps(summary, indent=1, default=str))
