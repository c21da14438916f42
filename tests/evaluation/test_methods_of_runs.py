"""Which runs are one method, and what it is called."""

from __future__ import annotations

import json

import pytest
from fake_runs import write_run

from fuserl.errors import FuserlError
from fuserl.evaluation.methods import method_named, methods_of, only_with
from fuserl.evaluation.runs import find_runs


def methods(folder, *, by=None, names=None):
    return methods_of(find_runs([str(folder)])[0], by, names)


def labels(folder, **kwargs):
    return sorted(method.label for method in methods(folder, **kwargs))


def test_runs_that_differ_in_seed_and_bookkeeping_alone_are_one_method(tmp_path):
    for seed in range(3):
        given = {"trainer.log_every": seed + 1, "cache": f"c{seed}", "logger": {"a": seed}}
        write_run(tmp_path / str(seed), seed, given)
    (method,) = methods(tmp_path)
    assert method.label == "objective=fusesft"
    assert sorted(method.by_seed) == [0, 1, 2]


def test_only_the_runs_with_given_settings_are_kept(tmp_path):
    for tau in (0.1, 1.0):
        for seed in range(2):
            write_run(tmp_path / f"{tau}{seed}", seed, {"weights.tau": tau, "objective.name": "fusepo_dpo"})
    runs, _ = find_runs([str(tmp_path)])
    assert sorted(run.seed for run in only_with(runs, {"tau": 0.1})) == [0, 1]
    assert len(only_with(runs, {"objective.name": "fusepo_dpo", "weights.tau": 1.0})) == 2
    assert len(only_with(runs, {"objective.name": "fusepo_dpo"})) == 4


def test_a_setting_that_another_determines_is_not_in_the_name(tmp_path):
    """Each objective has its own rate and its own tau stands in two places: the name says neither twice."""
    for objective, rate in (("sft_best", 1e-5), ("fusepo_dpo", 1e-6)):
        for tau in (0.1, 1.0):
            given = {
                "objective.name": objective,
                "optimizer.lr": rate,
                "weights.tau": tau,
                "objective.loss.weights.tau": tau,
            }
            write_run(tmp_path / f"{objective}{tau}", 0, given)
    assert labels(tmp_path) == [
        f"objective={name}, tau={tau}" for name in ("fusepo_dpo", "sft_best") for tau in ("0.1", "1.0")
    ]


def test_values_are_short_where_that_is_enough(tmp_path):
    given = [
        {"weights._target_": "fuserl.objectives.weights.softmax", "data.part": [0, 0.4], "target.path": "/models/one"},
        {"weights._target_": "fuserl.objectives.weights.uniform", "data.part": [0, 0.4], "target.path": "/models/two"},
        {"weights._target_": "fuserl.objectives.weights.uniform", "data.part": [0.4, 1], "target.path": "/models/two"},
    ]
    for number, one in enumerate(given):
        write_run(tmp_path / str(number), 0, one)
    assert labels(tmp_path) == [
        "weights=softmax, part=[0,0.4]",
        "weights=uniform, part=[0,0.4]",
        "weights=uniform, part=[0.4,1]",
    ]


def test_a_setting_that_some_do_not_have(tmp_path):
    write_run(tmp_path / "a", 0, {"objective.beta": 0.1})
    write_run(tmp_path / "b", 0, {"objective.beta": 0.3})
    write_run(tmp_path / "c", 0)
    assert labels(tmp_path) == ["beta=0.1", "beta=0.3", "beta=—"]


def test_runs_that_start_from_their_own_seeds_sft_are_one_method(tmp_path):
    for seed in range(2):
        for lr in (1e-5, 1e-4):
            sft = write_run(tmp_path / "sft" / f"{lr}-{seed}", seed, {"optimizer.lr": lr})
            write_run(
                tmp_path / "po" / f"{lr}-{seed}",
                seed,
                {"objective.name": "fusepo_dpo", "target.path": str(sft / "model")},
            )
    found = methods(tmp_path / "po")
    assert len(found) == 2
    assert all(method.label.startswith("target=fusesft-") and sorted(method.by_seed) == [0, 1] for method in found)
    assert len({method.label for method in found}) == 2


def test_a_sweep_that_was_moved_still_knows_where_its_runs_started(tmp_path):
    for seed in range(2):
        write_run(tmp_path / "old" / f"sft{seed}", seed)
        start = {"objective.name": "fusepo_dpo", "target.path": str(tmp_path / "old" / f"sft{seed}" / "model")}
        write_run(tmp_path / "old" / f"po{seed}", seed, start)
    (tmp_path / "old").rename(tmp_path / "new")
    assert [len(method.runs) for method in methods(tmp_path / "new")] == [2, 2]


def test_models_that_point_at_each_other_are_no_endless_loop(tmp_path):
    write_run(tmp_path / "a", 0, {"target.path": str(tmp_path / "b" / "model")})
    write_run(tmp_path / "b", 0, {"target.path": str(tmp_path / "a" / "model"), "batch_size": 2})
    assert len(methods(tmp_path)) == 2


def test_by_decides_and_names_replace(tmp_path):
    for number, (objective, lr) in enumerate((o, lr) for o in ("a", "b") for lr in (1, 2)):
        write_run(tmp_path / str(number), number, {"objective.name": objective, "optimizer.lr": lr})
    assert labels(tmp_path, by=["objective.name"]) == ["objective=a", "objective=b"]
    assert labels(tmp_path, by=["lr"], names={"lr=1": "slow"}) == ["lr=2", "slow"]
    with pytest.raises(FuserlError, match="no run has a setting `tua`") as error:
        methods(tmp_path, by=["tua"])
    assert "objective.name" in error.value.hint
    with pytest.raises(FuserlError, match="no method is called `x`"):
        methods(tmp_path, names={"x": "y"})
    with pytest.raises(FuserlError, match="two methods would have one name"):
        methods(tmp_path, by=["lr"], names={"lr=1": "lr=2"})


def test_a_baseline_is_named_by_parts(tmp_path):
    for objective in ("sft_best", "fusesft"):
        for tau in (0.1, 1.0):
            write_run(tmp_path / f"{objective}{tau}", 0, {"objective.name": objective, "weights.tau": tau})
    found = methods(tmp_path)
    for wanted in ("objective=sft_best, tau=0.1", "tau=0.1,sft_best", "weights.tau=0.1,objective.name=sft_best"):
        assert method_named(found, wanted, "`baseline`").label == "objective=sft_best, tau=0.1"
    for wanted, what in (("sft_best", "2 methods match"), ("dpo", "no methods match")):
        with pytest.raises(FuserlError, match=what) as error:
            method_named(found, wanted, "`baseline`")
        assert "objective=fusesft, tau=1.0" in error.value.hint


def test_what_is_left_out_has_a_reason(tmp_path):
    one = write_run(tmp_path / "one", 0)
    write_run(tmp_path / "copy", 0, {"logger": {"a": 1}})
    failed, torn, broken, text = (write_run(tmp_path / name, 1) for name in ("failed", "torn", "broken", "text"))
    for folder in (failed, torn):
        (folder / "summary.json").unlink()
    (failed / "failure.json").write_text(json.dumps({"error": "no\nmemory", "where": "", "hint": "", "at": ""}))
    (broken / "test.jsonl").write_text('{"prompt_id": "a"}\n')
    (text / "summary.json").write_text("{")
    runs, left_out = find_runs([str(tmp_path), str(one), str(tmp_path / "on*")])
    assert len(runs) == 1
    why = {left.path.name: left.why for left in left_out}
    assert why["failed"] == "failed: no memory"
    assert why["torn"].startswith("not finished")
    assert "test.jsonl, line 1" in why["broken"]
    assert why["text"].startswith("it cannot be read")
    assert "the same run as" in (why.get("one") or why["copy"])


def test_nothing_found(tmp_path):
    with pytest.raises(FuserlError, match="there is no such folder"):
        find_runs([str(tmp_path / "nowhere")])
    with pytest.raises(FuserlError, match="no complete run was found"):
        find_runs([str(tmp_path)])


def test_a_merged_model_is_the_method_of_its_merge_and_experts_whatever_their_seeds(tmp_path):
    for seed in range(2):
        for rate in (1e-5, 1e-6):
            write_run(tmp_path / f"trained-{rate}-{seed}", seed, {"optimizer.lr": rate})
        experts = [str(tmp_path / f"trained-{rate}-{seed}" / "model") for rate in (1e-5, 1e-6)]
        for name in ("varm", "ties"):
            merged = tmp_path / f"{name}-{seed}"
            merged.mkdir()
            settings = {"merge": {"name": name}, "base": "pivot", "experts": experts, "output": str(merged)}
            (merged / "config.yaml").write_text(json.dumps(settings))
            write_run(tmp_path / "evaluated" / f"{name}-{seed}", seed, {"model": str(merged)})
    found = methods(tmp_path / "evaluated")
    assert [method.label.split("=")[1].split("-")[0] for method in found] == ["ties", "varm"]
    assert all(sorted(method.by_seed) == [0, 1] for method in found)
