"""Rows a second of the scorer `reward_model`, against transformers' classifier in batches of eight as they come.

    python -m benchmarks.reward_model [--answers 256] [--tasks alpaca_multi]

Both sides render, tokenise and score the same real answers with the same random weights. Asserted: the numbers agree with
those of each conversation alone, on both sides (float32: to 1e-4).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from benchmarks import kit
from benchmarks.groups import TASKS, Task
from benchmarks.models import config_of, tokenizer
from fuserl.records.formats import read_groups
from fuserl.rewards.batches import padded, unused_token
from fuserl.rewards.made import made
from fuserl.rewards.protocol import Item
from fuserl.rewards.reward_model import RewardModel
from fuserl.settings import compose, plain

BATCH = 8  # conversations, of the other side
CLOSE = {"fp32": 1e-4, "bf16": 0.2}  # reward units, of weights whose numbers spread by about 1
COLUMNS = (
    "data",
    "answers",
    "tokens, longest",
    "ours, rows/s",
    "eights, rows/s",
    "ours / eights",
    "largest difference",
)
FORM = """
{answers} answers of each set in its order, GPT-2's tokenizer and the template `plain`, conversations of up to {longest} tokens.
Ours: `fuserl score`'s scorer, its settings as in conf/, `max_batch_tokens={tokens}`. Eights: transformers' own classifier, eight
conversations in the order of the data, padded to the longest. Medians of {steps} repetitions in turn; model loaded before.
The difference is the largest between a number and that of its conversation alone, over both sides.
"""


def answers(task: Task, count: int) -> list[Item]:
    """The first real answers of a set.

    Raises:
        SystemExit: the data set is not there.
    """
    path = kit.DATA / task.folder
    if not path.exists():
        raise SystemExit(f"{path} is needed; FUSERL_SHARED names the folder that holds `data/`")
    found: list[Item] = []
    for group in read_groups(str(path), split="train", on_bad_row="skip"):
        found += [Item(f"{group.id} {n}", group, one) for n, one in enumerate(group.responses) if one.text.strip()]
        if len(found) >= count:
            break
    return found[:count]


def save(folder: Path, size: str) -> Path:
    """A random classifier that reads sequences to their end, with its tokenizer."""
    torch.manual_seed(0)
    config, words = config_of(size), tokenizer()
    config.update({"num_labels": 1, "eos_token_id": words.eos_token_id, "pad_token_id": words.eos_token_id})
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def scorer_of(folder: Path, arguments: argparse.Namespace) -> RewardModel:
    """The scorer, as the verb makes it."""
    where = "rewards.reward_model"
    settings = [
        "data.path=x", "reward=reward_model", f"{where}.path={folder}", f"{where}.max_length={arguments.longest}",
        f"{where}.classifier.dtype={str(kit.DTYPES[arguments.dtype]).removeprefix('torch.')}",
        f"{where}.classifier.devices={arguments.device}", f"{where}.classifier.max_batch_tokens={arguments.tokens}",
    ]  # fmt: skip
    node = plain(compose("score", settings))["rewards"]["reward_model"]
    return made({key: value for key, value in node.items() if key != "domains"} | {"name": "reward_model"}, where)


def ours(scorer: RewardModel, items: list[Item]) -> dict[str, float | None]:
    """key -> number."""
    return {score.key: score.reward for score in scorer.score(items)}


@torch.inference_mode()
def eights(scorer: RewardModel, model: Any, items: list[Item]) -> dict[str, float]:
    """key -> number, by transformers alone."""
    found: dict[str, float] = {}
    stream = iter(items)
    while batch := list(islice(stream, BATCH)):
        rows = [one.ids for one in scorer.form.encode([(item.group.prompt, item.response.text) for item in batch])]
        pad = unused_token(rows, model.config.vocab_size)
        model.config.pad_token_id = pad
        ids, mask = padded(rows, pad or 0)
        logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits[:, 0]
        found |= dict(zip((item.key for item in batch), logits.double().tolist(), strict=True))
    return found


@torch.inference_mode()
def alone(scorer: RewardModel, model: Any, items: list[Item]) -> Iterator[tuple[str, float]]:
    """(key, number) of each conversation by itself: the oracle."""
    for item in items:
        (one,) = scorer.form.encode([(item.group.prompt, item.response.text)])
        row = torch.tensor([one.ids], device=model.device)
        yield item.key, model.score(model.base_model(row).last_hidden_state[0, -1].to(model.score.weight.dtype)).item()


def measure(task: Task, arguments: argparse.Namespace, folder: Path) -> list[str]:
    """A row of the table."""
    device = kit.device_of(arguments.device)
    scorer = scorer_of(folder, arguments)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=kit.DTYPES[arguments.dtype])
    model.to(device).eval()
    items = answers(task, arguments.answers)
    numbers = ours(scorer, items)
    items = [item for item in items if numbers[item.key] is not None]
    expected, by_us, by_eights = dict(alone(scorer, model, items)), ours(scorer, items), eights(scorer, model, items)
    gap = max(abs(side[key] - number) for key, number in expected.items() for side in (by_us, by_eights))
    assert gap < CLOSE[arguments.dtype], f"numbers differ from those of conversations alone by {gap}"
    lengths = [len(one.ids) for one in scorer.form.encode([(i.group.prompt, i.response.text) for i in items])]
    pair = kit.in_turn(partial(ours, scorer, items), partial(eights, scorer, model, items), arguments.steps, device)
    rates = [f"{len(items) / kit.median(side):,.1f}" for side in (pair.ours, pair.theirs)]
    tokens = f"{sum(lengths):,}, {max(lengths):,}"
    return [task.name, str(len(items)), tokens, *rates, f"**{pair.ratio:.2f}** ({pair.spread})", f"{gap:.0e}"]


def main() -> Path:
    """Measure on some data sets and write the table."""
    parser = kit.options(__doc__, prompts=0, steps=3)
    parser.add_argument("--answers", type=int, default=256, help="of each set")
    parser.add_argument("--longest", type=int, default=1024, help="tokens; longer conversations are left out")
    parser.add_argument("--tokens", type=int, default=4096, help="`max_batch_tokens`")
    parser.add_argument("--tasks", nargs="+", default=["alpaca_multi", "zeroeval_multi"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        saved = save(Path(folder), arguments.size)
        rows = [measure(task, arguments, saved) for task in TASKS if task.name in arguments.tasks]
    form = FORM.strip().format(**vars(arguments))
    text = f"{kit.header('Reward models', arguments)}\n{form}\n\n{kit.table(COLUMNS, rows)}"
    return kit.write("reward_model", text, arguments)


if __name__ == "__main__":
    main()
