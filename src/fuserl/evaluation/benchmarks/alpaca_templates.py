"""An annotator of AlpacaEval taken apart: what it asks about a pair of answers, and what it reads in the judge's words."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuserl.errors import FuserlError
from fuserl.evaluation.benchmarks.alpaca_package import alpaca, quiet, version
from fuserl.records.schema import ROLES, Message
from fuserl.rewards.fences import JOINER, defused

BLANKS = ("instruction", "output_1", "output_2")
BLANK = re.compile(r"\{(?=(?:" + "|".join(BLANKS) + r")\})")  # the package fills them one after the other, in texts too
COLUMN = "preference"
WHERE = "`graders.annotator.config`"
SERVED = "openai_completions"
FAILS = (  # of the package, at words that its parsers did not think of
    ArithmeticError, AssertionError, AttributeError, LookupError, NameError, RecursionError, TypeError, ValueError,
)  # fmt: skip
TURNS = "<|im_start|>", "<|im_end|>"


class _Asked(Exception):
    """Carries a prompt out of the package, before anything is sent."""

    def __init__(self, prompt: str) -> None:
        self.prompt = prompt


@dataclass(frozen=True)
class Template:
    """An annotator of the package for one pair at a time.

    Texts of others get a sign that prints nothing into whatever looks like a control token or a blank: the package
    makes turns of the former wherever they stand, and fills the latter in answers too.
    """

    name: str
    settings: Mapping[str, Any]
    seed: int
    single: Any  # alpaca_eval's SinglePairwiseAnnotator
    version: str

    @property
    def request(self) -> Mapping[str, Any]:
        """What the annotator's settings say of a request."""
        return self.settings.get("completions_kwargs") or {}

    @property
    def hash(self) -> str:
        """16 hexadecimal digits of the template's text."""
        return hashlib.sha256(self.single.prompt_template.encode()).hexdigest()[:16]

    def identity(self) -> Mapping[str, Any]:
        """All that decides prompts and readings."""
        settings = {key: value for key, value in self.settings.items() if key != "completions_kwargs"}
        return {"settings": settings, "template": self.hash, "seed": self.seed, "alpaca-eval": self.version}

    def asked(self, instruction: str, baseline: str, answer: str) -> tuple[Message, ...]:
        """The judge's turns."""

        def stop(prompts: list[str], **_: Any) -> Any:
            raise _Asked(prompts[0])

        try:
            self._called(stop, instruction, baseline, answer)
        except _Asked as asked:
            return _turns(asked.prompt)
        raise AssertionError("an annotator asks about every pair")

    def read(self, instruction: str, baseline: str, answer: str, text: str, choice: Mapping[str, Any]) -> float | None:
        """The preference, from 1 (the baseline's) to 2 (the answer), in the order that they came in; None: it says none."""

        def said(prompts: list[str], **_: Any) -> dict[str, list[Any]]:
            return {"completions": [text], "completions_all": [dict(choice)]}

        try:
            found = self._called(said, instruction, baseline, answer)
        except FAILS:
            return None
        if len(found) != 1:
            return None
        value = float(found[COLUMN].iloc[0])
        return 1.5 if value == 0 else value if 1 <= value <= 2 else None

    def _called(self, completions: Any, instruction: str, baseline: str, answer: str) -> Any:
        from pandas import DataFrame

        texts = dict(zip(BLANKS, map(harmless, (instruction, baseline, answer)), strict=True))
        self.single.fn_completions = completions
        with quiet():
            return self.single(DataFrame([texts], dtype=object))


def control(text: str) -> bool:
    """Whether a text holds what a judge's template would take for a part of its own."""
    return harmless(text) != text


def harmless(text: str) -> str:
    """The text with a sign that prints nothing in what looks like a control token or a blank of the template.

    >>> harmless("see {output_2}") == "see {" + JOINER + "output_2}"
    True
    """
    return BLANK.sub("{" + JOINER, defused(text))


def template_of(config: str | Mapping[str, Any], seed: int) -> Template:
    """From an annotator's name, folder or settings.

    Raises:
        FuserlError: there is none, it is one that this cannot ask, or the package is not installed.
    """
    package, base = alpaca("annotators.pairwise_evaluator"), alpaca("constants").EVALUATORS_CONFIG_DIR
    name, settings, folder = _settings(config, Path(base))
    if settings.get("batch_size", 1) != 1:
        raise _cannot(name, "asks about several pairs at once")
    if settings.get("fn_completions", SERVED) != SERVED:
        raise _cannot(name, f"asks by `{settings['fn_completions']}`, not through chat completions")
    wanted = {
        key: value
        for key, value in settings.items()
        if key not in ("fn_completions", "packages_for_which_to_show_version")
    }
    try:
        with quiet():
            single = package.SinglePairwiseAnnotator(
                **deepcopy(wanted),  # it writes into what it is given
                fn_completions=_nothing,
                packages_for_which_to_show_version=None,
                seed=seed,
                base_dir=folder,
                annotation_column=COLUMN,
                completion_column=f"{COLUMN}_raw_completion",
            )
    except (TypeError, ValueError, AttributeError, OSError) as error:
        raise _cannot(name, f"cannot be made ({str(error).splitlines()[0][:160]})") from error
    text = str(single.prompt_template)
    if lacking := [blank for blank in BLANKS if text.count(f"{{{blank}}}") != 1]:
        raise _cannot(name, f"has a template without `{{{lacking[0]}}}`, or with several: is there such a file?")
    if not (text.strip().startswith(TURNS[0]) and text.strip().endswith(TURNS[1])):
        raise _cannot(name, "has a template without turns, for models that continue texts")
    return Template(name, settings, seed, single, version())


def _settings(config: str | Mapping[str, Any], base: Path) -> tuple[str, dict[str, Any], Path]:
    """(name, settings, the folder that its template's path starts from)."""
    import yaml

    if isinstance(config, Mapping):
        found, folder = dict(config), base
        if "prompt_template" in found:
            found = {"own": found}
    else:
        place = next((p for p in (base / config, Path(config).expanduser()) if p.exists()), None)
        if place is None:
            known = ", ".join(sorted(one.name for one in base.iterdir() if one.name.startswith("weighted")))
            raise FuserlError(
                f"there is no annotator `{config}`",
                where=WHERE,
                hint=f"a folder with `configs.yaml`, or one of {known}, ...",
            )
        file = place / "configs.yaml" if place.is_dir() else place
        try:
            found = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise _cannot(str(config), f"cannot be read ({str(error).splitlines()[0][:160]})") from error
        folder = file.parent.parent
    if not isinstance(found, dict) or len(found) != 1 or not isinstance(next(iter(found.values())), Mapping):
        raise _cannot(str(config)[:80], "is not the settings of one annotator")
    name, settings = next(iter(found.items()))
    return str(name), dict(settings), folder


def _turns(prompt: str) -> tuple[Message, ...]:
    """The prompt's turns, as the package parts them.

    Raises:
        FuserlError: one has a role that chats do not have.
    """
    with quiet():
        turns = alpaca("utils").prompt_to_chatml(prompt.strip())
    if strange := [turn["role"] for turn in turns if turn["role"] not in ROLES]:
        raise _cannot("of the template", f"has a turn of `{strange[0]}`")
    return tuple(Message(turn["role"], turn["content"]) for turn in turns)


def _nothing(prompts: list[str], **_: Any) -> Any:
    raise AssertionError("asked before anything was to be asked")


def _cannot(name: str, why: str) -> FuserlError:
    return FuserlError(
        f"the annotator `{name}` {why}",
        where=WHERE,
        hint="`weighted_alpaca_eval_gpt4_turbo` is the one of published numbers; see its configs.yaml for the form",
    )
