"""A step whose gradient is not finite is left out, or stops the run: both by the setting, both exactly.

The NaN is real: the embedding of one letter is NaN in the target, and one prompt in twelve has the letter.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import weights  # tests/training/conftest.py
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from fuserl.errors import FuserlError
from fuserl.settings import compose
from fuserl.training.callbacks.guards import NonFiniteStop
from fuserl.training.group_module import GroupModule
from fuserl.training.run import _optimizer
from fuserl.training.setup import Setup

POISONED = ("p3", "p15")
STEPS = 12  # two epochs of six: four steps are poisoned, or fewer where both prompts share one


def row(number: int) -> dict:
    prompt = f"pair {number + 30}" + (" y" if f"p{number}" in POISONED else "")
    texts = (f"{number} 30", f"{number + 2} 28", f"9 {number + 21}")
    responses = [{"source": f"s{at}", "text": text, "reward": 0.3 * at} for at, text in enumerate(texts)]
    return {"prompt_id": f"p{number}", "prompt": prompt, "domain": "pair", "responses": responses}


@pytest.fixture(scope="module")
def poisoned(target, tmp_path_factory) -> list[str]:
    """Settings: prompts of which two hold a letter that is NaN in the target."""
    folder = tmp_path_factory.mktemp("poisoned")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(target), AutoTokenizer.from_pretrained(target)
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids("y")] = float("nan")
    model.save_pretrained(folder / "target")
    tokenizer.save_pretrained(folder / "target")
    (folder / "groups.jsonl").write_text("".join(json.dumps(row(number)) + "\n" for number in range(24)))
    return [
        f"data.path={folder / 'groups.jsonl'}", f"target.path={folder / 'target'}", "data.validation_fraction=0",
        "data.limit=null", "batch_size=4", f"max_steps={STEPS}", "trainer.max_tokens=60", "optimizer.weight_decay=0.1",
    ]  # fmt: skip


def by_hand(overrides: list[str]) -> tuple[dict[str, torch.Tensor], torch.optim.Optimizer, list[int]]:
    """Weights and optimiser of a loop that takes no step where the gradient is not finite, and those steps."""
    cfg = compose("train", overrides)
    Path(cfg.output).mkdir()  # whose disk is asked for room
    setup = Setup(cfg)
    split, objective = setup.prepared.train, setup.prepared.objective
    optimizer, schedule = _optimizer(cfg, split.plan.steps)(setup.policy)
    left_out = []
    setup.policy.train()
    for step in range(split.plan.steps):
        optimizer.zero_grad()
        for position in range(split.plan.packs_per_step):
            batch = split.pack(step, position, 0)
            found = setup.scoring.loss(setup.policy, batch, lambda scores, s=step: objective.loss(scores, progress=s / split.plan.steps))  # fmt: skip
            (found.sum / batch.count_in_step).backward()
        trained = list(setup.policy.parameters())
        if all(weight.grad.isfinite().all() for weight in trained):
            torch.nn.utils.clip_grad_norm_(trained, cfg.optimizer.clip)
            optimizer.step()
        else:
            left_out.append(step)
        schedule.step()
    return dict(setup.policy.state_dict()), optimizer, left_out


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], **tolerance: float) -> None:
    assert ours.keys() <= theirs.keys()
    for name, weight in ours.items():
        assert_close(weight, theirs[name], **(tolerance or {"rtol": 0, "atol": 0}), equal_nan=True)


@pytest.fixture
def skipping(settings, poisoned) -> Callable[..., list[str]]:
    """`skipping(skips, *more, output=)`: settings of a run that leaves so many steps out."""
    return lambda skips, *more, output: settings("fusesft", *poisoned, f"nonfinite.skips={skips}", *more, output=output)


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def newest(folder: Path) -> int:
    return max((int(path.stem.split("-")[1]) for path in folder.glob("checkpoints/step-*.ckpt")), default=0)


def test_a_run_that_leaves_steps_out_is_the_loop_that_takes_none(run, skipping, poisoned, tmp_path, capsys):
    theirs, optimizer, left_out = by_hand(skipping(4, output="hand"))
    assert 2 <= len(left_out) <= 4
    folder = run("fusesft", *poisoned, "nonfinite.skips=4")
    said = capsys.readouterr().err
    kept = torch.load(folder / f"checkpoints/step-{STEPS}.ckpt", weights_only=True)
    same(
        {name.removeprefix("policy."): weight for name, weight in kept["state_dict"].items()},
        theirs,
        rtol=0,
        atol=1e-12,
    )
    (states,) = kept["optimizer_states"]
    assert {int(state["step"]) for state in states["state"].values()} == {STEPS - len(left_out)}
    for mine, other in zip(states["state"].values(), optimizer.state_dict()["state"].values(), strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            assert_close(mine[name], other[name], rtol=0, atol=1e-12, equal_nan=True)
    assert [one["step"] for one in summary(folder)["skipped_steps"]] == left_out
    for one in summary(folder)["skipped_steps"]:
        assert set(POISONED) & set(one["groups"])
        assert f"optimiser step {one['step']} is left out" in said
    with (folder / "metrics.csv").open() as file:
        rows = {int(row["step"]) - 1: row for row in csv.DictReader(file) if int(row["step"])}
    for step in range(STEPS):
        assert bool(rows[step]["train/loss"]) == (step not in left_out), "a step that is left out is not measured"
        assert bool(rows[step]["train/skipped_steps"]) == (step in left_out)
    assert json.dumps(summary(folder), allow_nan=False)


def test_a_step_that_is_left_out_changes_no_bit(run, poisoned, monkeypatch):
    seen: dict[int, dict] = {}

    def look(self, outputs, batch, batch_index):
        if (batch_index + 1) % self.trainer.accumulate_grad_batches == 0:
            rate = self.trainer.optimizers[0].param_groups[0]["lr"]
            weights = {name: weight.clone() for name, weight in self.policy.state_dict().items()}
            seen[self.global_step] = weights | {"rate": torch.tensor(rate)}

    monkeypatch.setattr(GroupModule, "on_train_batch_end", look)
    left_out = [one["step"] for one in summary(run("fusesft", *poisoned, "nonfinite.skips=4"))["skipped_steps"]]
    for step in range(1, STEPS):
        before, after = seen[step], seen[step + 1]
        still = all(torch.equal(before[n].nan_to_num(7), after[n].nan_to_num(7)) for n in before if n != "rate")
        assert still == (step in left_out), step
        assert before["rate"] != after["rate"] or not still, "the schedule goes on"


def test_killed_between_and_resumed_is_the_same(run, poisoned, skipping, nursery, tmp_path):
    plain = run("fusesft", *poisoned, "nonfinite.skips=4", output="plain")
    first, *_, last = [one["step"] for one in summary(plain)["skipped_steps"]]
    killed = tmp_path / "killed"
    nursery.run("train", skipping(4, output="killed"), kill_when=lambda: newest(killed) > first)
    assert first < newest(killed) <= last, "killed too late"
    finished = run("fusesft", *poisoned, "nonfinite.skips=4", output="killed")
    same(weights(finished), weights(plain))
    assert summary(finished)["skipped_steps"] == summary(plain)["skipped_steps"]


def test_used_up_it_stops_and_more_of_it_goes_on(run, poisoned, tmp_path):
    plain = run("fusesft", *poisoned, "nonfinite.skips=4", output="plain")
    found = summary(plain)["skipped_steps"]
    for skips in range(len(found)):
        with pytest.raises(FuserlError, match=f"optimiser step {found[skips]['step']} is not finite") as caught:
            run("fusesft", *poisoned, f"nonfinite.skips={skips}", output="run")
        assert all(name in caught.value.where for name in found[skips]["groups"])
        assert f"nonfinite.skips={skips + 1}" in caught.value.hint
    folder = run("fusesft", *poisoned, f"nonfinite.skips={len(found)}", output="run")
    same(weights(folder), weights(plain))
    assert summary(folder)["skipped_steps"] == found


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_leave_out_the_same_steps(strategy, run, poisoned, skipping, nursery):
    """The prompt's pack is on one of them."""
    alone = run("fusesft", *poisoned, "nonfinite.skips=4", output="alone")
    both = skipping(4, f"trainer={strategy}", output="both")
    assert nursery.run("training.ranks", ["2", *both])
    folder = alone.parent / "both"
    assert summary(folder)["skipped_steps"] == summary(alone)["skipped_steps"]
    same(weights(folder), weights(alone), rtol=0, atol=1e-9)


def test_adapters_alone_are_left_out_as_well(run, poisoned):
    adapter = "target.lora={r: 2, target_modules: [query_key_value]}"
    folder = run("fusesft", *poisoned, adapter, "nonfinite.skips=4")
    assert summary(folder)["skipped_steps"]
    assert all(weight.isfinite().all() for name, weight in weights(folder).items() if "embed_in" not in name)


def test_what_was_left_out_outlives_the_process():
    before, after = NonFiniteStop(2), NonFiniteStop(2)
    before.skipped.append({"step": 3, "groups": ["a"]})
    after.load_state_dict(before.state_dict())
    assert after.skipped == before.skipped
