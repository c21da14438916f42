"""Every file of conf/sft, conf/po, conf/protocol and conf/rules can be chosen; a protocol's `po=` can be another's."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from fuserl.curation.planned import planned
from fuserl.settings import compose, config_folder, leaves, plain

GROUPS = ("sft", "po", "protocol", "rules")
FILES = [(group, path.stem) for group in GROUPS for path in sorted((config_folder() / group).glob("*.yaml"))]


def plan(tmp_path, *overrides: str):
    path = tmp_path / "in.jsonl"
    path.write_text("")
    return planned(plain(compose("select", [f"data.path={path}", *overrides])))


@pytest.mark.parametrize(("group", "name"), FILES)
def test_every_file_can_be_chosen(group, name, tmp_path):
    share = {("sft", "none"): "sft_share=0", ("po", "none"): "sft_share=1"}.get((group, name))
    evaluation = tmp_path / "gsm8k_test200.jsonl"
    evaluation.write_text('{"question": "How many?", "id": 1}\n')
    own = {
        "decontaminated": (f"rules.contaminated.folder={tmp_path}", "rules.contaminated.against=[gsm8k]"),
    }.get(name, ())
    found = plan(tmp_path, f"{group}={name}", *([share] if share else []), *own)
    assert [step.name for step in found.steps][-1] == "blank"


@pytest.mark.parametrize("protocol", ["fusechat3", "fuserl", "wrpo"])
@pytest.mark.parametrize("po", ["pairs", "pairs_per_source", "groups", "quadruple"])
def test_a_protocol_can_be_had_with_other_preferences(protocol, po, tmp_path):
    assert plan(tmp_path, f"protocol={protocol}", f"po={po}").default.po is not None


def test_the_published_numbers_are_in_the_protocols(tmp_path):
    fusechat = plan(tmp_path, "protocol=fusechat3")
    instruction, math, code = (fusechat.protocol(domain) for domain in ("instruction", "math", "code"))
    assert (instruction.sft_share, instruction.sft.size, instruction.po.among) == (0.4, 1, "best_source")
    assert [(one.po.min_gap, one.po.max_gap) for one in (instruction, math, code)] == [
        (0.01, 0.1),
        (0.01, 0.1),
        (None, None),
    ]
    assert {(one.sft.verdict, one.po.chosen, one.po.rejected) for one in (math, code)} == {("right", "right", "wrong")}
    assert round(51803 * math.sft_share) == pytest.approx(40188, abs=3)
    assert round(16005 * code.sft_share) == pytest.approx(12037, abs=3)
    assert (fusechat.protocol("chinese").sft_share, list(fusechat.protocol("chinese").sft.sources)) == (
        1.0,
        ["qwen25_72b"],
    )
    fuserl = plan(tmp_path, "protocol=fuserl").default
    assert (fuserl.sft.size, fuserl.po.among, fuserl.po.min_gap) == (4, "per_source", None)
    wrpo = plan(tmp_path, "protocol=wrpo", "target_source=me").default
    assert (wrpo.po.target, list(wrpo.sft.without)) == ("me", ["me"])


def test_a_user_can_set_few_things():
    """Rules have their own pages; `_target_` and copies of other settings are wiring."""
    tree = OmegaConf.to_container(compose("select", ["rules=none"]), resolve=False)
    own = [key for key, value in leaves(tree) if not key.startswith(("hydra", "same_side")) and "_target_" not in key]
    assert len(own) <= 40, own
