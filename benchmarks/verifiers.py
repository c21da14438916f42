"""What the verifiers find against published verdicts, every disagreement, and how fast they are.

    python -m benchmarks.verifiers [--sets gsm8k_multi zeroeval_multi humaneval_multi crux ifeval]

Every answer of the real sets is graded by `fuserl score`'s own scorers, as their files in conf/ set them. Asserted: the
agreement that each set promises, and that docs/verifiers.md lists exactly the disagreements found.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import kit
from fuserl.records.formats import read_groups
from fuserl.records.rows import Needs
from fuserl.records.schema import PromptGroup, Response
from fuserl.rewards.made import made
from fuserl.rewards.protocol import Item, Score, Scorer
from fuserl.settings import compose, plain

PAGE = kit.ROOT / "docs" / "verifiers.md"
SPLITS = ("train", "validation", "test")
COLUMNS = ("set", "verdicts", "agree", "share", "unknown", "seconds", "verdicts/s")
FORM = """
Every answer with a published verdict, by the scorers as their files in conf/ set them, {workers} at a time. Cells of `code` are
bubblewrap's, an examiner's and a program's each. Disagreements are listed in docs/verifiers.md, which was checked against this run.
"""


@dataclass(frozen=True)
class Facts:
    """A set of answers with published verdicts."""

    name: str
    reward: str  # of conf/reward
    least: float  # share of verdicts that must agree
    asks: Callable[[PromptGroup, Response], bool]  # is there a published verdict on it?
    folder: str = ""  # where not as the set is called


@dataclass(frozen=True, order=True)
class Disagreement:
    """One answer that we examiner otherwise."""

    prompt: str
    source: str  # and the number of its sample
    ours: str
    theirs: str


@dataclass(frozen=True)
class Comparison:
    """What came of a set."""

    verdicts: int
    unknown: int
    disagreements: list[Disagreement]
    seconds: float

    @property
    def share(self) -> float:
        """Of verdicts that agree; an unknown one never does."""
        return 1 - len(self.disagreements) / self.verdicts


SETS = {
    facts.name: facts
    for facts in (
        Facts("gsm8k_multi", "math", 0.999, lambda group, response: True),
        Facts("zeroeval_multi", "math", 0.99, lambda group, response: group.extra["task"] != "crux"),
        Facts("crux", "literal", 0.998, lambda group, response: group.extra["task"] == "crux", "zeroeval_multi"),
        Facts("humaneval_multi", "code", 0.995, lambda group, response: True),
    )
}
IFEVAL, IFEVAL_LEAST = "ifeval", 0.995


def scorer_of(reward: str, *settings: str) -> Scorer:
    """The scorer that `fuserl score reward=...` makes."""
    node = plain(compose("score", ["data.path=none", f"reward={reward}", *settings]))["rewards"][reward]
    return made({"name": reward, **{key: value for key, value in node.items() if key != "domains"}}, reward)


def items_of(facts: Facts) -> Iterator[Item]:
    """Every answer with a published verdict.

    Raises:
        SystemExit: the data set is not there.
    """
    folder = kit.DATA / (facts.folder or facts.name)
    if not folder.is_dir():
        raise SystemExit(f"{folder} is needed; FUSERL_SHARED names the folder that holds `data/`")
    for split in SPLITS:
        for group in read_groups(folder, split=split, needs=Needs(text=False)):
            for number, response in enumerate(group.responses):
                if facts.asks(group, response):
                    yield Item(f"{group.id}|{number}", group, response)


def compared(scorer: Scorer, items: Iterable[Item]) -> Comparison:
    """Our verdicts beside the published rewards.

    Raises:
        AssertionError: the scorer failed.
    """
    started, asked, unknown, found = time.perf_counter(), {}, 0, []
    for item in items:
        asked[item.key] = item
    for score in scorer.score(list(asked.values())):
        assert isinstance(score, Score), score
        response, theirs = asked[score.key].response, "right" if asked[score.key].response.reward else "wrong"
        unknown += score.verdict == "unknown"
        if score.verdict != theirs:
            source = f"{response.source} {response.sample}"
            found.append(Disagreement(asked[score.key].group.id, source, str(score.verdict), theirs))
    return Comparison(len(asked), unknown, sorted(found), time.perf_counter() - started)


def ifeval(path: Path) -> Comparison:
    """IFEval's verdicts, strict and loose, one for each constraint of an answer."""
    from fuserl.rewards.constraints import RULES, follows, readings

    started, verdicts, found = time.perf_counter(), 0, []
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    for row in rows:
        readings_of = {"strict": [row["response"]], "loose": readings(row["response"])}
        for reading, texts in readings_of.items():
            for name, wanted, theirs in zip(row["instruction_id_list"], row["kwargs"], row[reading], strict=True):
                wanted = {key: value for key, value in wanted.items() if value is not None}
                ours = follows(RULES[name], wanted, texts)
                verdicts += 1
                if ours != theirs:
                    what = ("wrong", "right")
                    found.append(Disagreement(str(row["key"]), f"{name} {reading}", what[ours], what[theirs]))
    return Comparison(verdicts, 0, sorted(found), time.perf_counter() - started)


def listed(name: str) -> list[Disagreement]:
    """The disagreements that the page lists for a set, under the heading of its name."""
    section = re.search(rf"^### {re.escape(name)}$(.*?)(?=^##|\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert section, f"{PAGE} has no section {name}"
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in section[1].splitlines() if line.startswith("| ")
    ]
    return sorted(Disagreement(*row[:4]) for row in rows if len(row) == 5 and row[2] in ("right", "wrong", "unknown"))


def assert_agreement(name: str, found: Comparison, least: float) -> None:
    """Raises: AssertionError: they agree less than is promised, or the page lists other disagreements."""
    assert found.share >= least, f"{name}: {found.share:.4%} agree, {found.disagreements[:5]}"
    told, page = set(found.disagreements), set(listed(name))
    assert told == page, f"{name}: not on the page {sorted(told - page)}; on the page alone {sorted(page - told)}"


def measured(name: str) -> Comparison:
    """One set, compared and required."""
    if name == IFEVAL:
        found = ifeval(kit.DATA / "eval" / "ifeval_gpt4_verdicts.jsonl.gz")
        assert_agreement(name, found, IFEVAL_LEAST)
        return found
    scorer = scorer_of(SETS[name].reward)
    try:
        found = compared(scorer, items_of(SETS[name]))
    finally:
        scorer.close()
    assert_agreement(name, found, SETS[name].least)
    return found


def main() -> Path:
    """Compare each set and write the table."""
    parser = kit.options(__doc__, prompts=0, steps=1)
    names = [*SETS, IFEVAL]
    parser.add_argument("--sets", nargs="+", default=names, choices=names)
    arguments: argparse.Namespace = parser.parse_args()
    rows = []
    for name in arguments.sets:
        found = measured(name)
        agree = found.verdicts - len(found.disagreements)
        rows.append(
            [name, f"{found.verdicts:,}", f"{agree:,}", f"{found.share:.3%}", found.unknown, f"{found.seconds:.1f}",
             f"{found.verdicts / found.seconds:,.0f}"]
        )  # fmt: skip
        print(*rows[-1], sep=" | ", flush=True)
    text = kit.header("Verifiers against published verdicts", arguments, extra=("math-verify", "sympy", "py3langid"))
    text += f"\n{FORM.strip().format(workers=arguments.threads)}\n\n" + kit.table(COLUMNS, rows)
    return kit.write("verifiers", text, arguments)


if __name__ == "__main__":
    main()
