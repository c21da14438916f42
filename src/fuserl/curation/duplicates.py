"""Rules that drop what says the same again: prompts, and responses of a source, of a prompt or of the whole set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from fuserl.curation.near import Key, Near, Twin, Twins
from fuserl.curation.rules import Found
from fuserl.curation.texts import excerpt, prompt_text
from fuserl.records.schema import PromptGroup, Response


class DuplicatePrompts:
    """Of prompts that say the same, or nearly so, the one with the smallest id stays, whatever order they come in.

    Args:
        near: when two prompts are nearly the same; None: only equal ones (`texts.normalised`) are found.
        drop: False: all stay, and are only told, so that a split can keep them on one side.
    """

    def __init__(self, name: str, near: Near | None, drop: bool) -> None:
        self.name, self.near, self.drop = name, near, drop
        self._twins: Twins | None = None

    def fit(self, groups: Iterable[PromptGroup]) -> None:
        """Read all prompts, once."""
        self._twins = Twins(self.near, ((prompt_text(group), (group.id,), "") for group in groups))

    def findings(self) -> dict[str, list[dict[str, Any]]]:
        """How many texts were compared and found alike."""
        return {"counts": [dict(_fitted(self).counts)]}

    def clusters(self) -> list[list[str]]:
        """Ids of prompts that say the same, or nearly so, two or more each."""
        return [[name for (name,) in members] for members in _fitted(self).clusters()]

    def __call__(self, group: PromptGroup) -> Found:
        """The prompt goes if one with a smaller id says the same."""
        if not self.drop:
            return Found()
        text = prompt_text(group)
        twin = _fitted(self).of(text, "")
        return Found() if twin is None or twin.kept == (group.id,) else Found(prompt=_why(twin, text, self.near))


class DuplicateResponses:
    """Of responses that say the same, or nearly so, one stays: of the smallest prompt id, then source name, then sample.

    Responses with different verdicts are never duplicates: one letter can make a right solution wrong.

    Args:
        within: gives each response a space (`one_source`, `one_prompt`, `all_prompts`); only those of one are compared.
        near: when two responses are nearly the same; None: only equal ones (`texts.normalised`) are found.
    """

    def __init__(self, name: str, within: Callable[[PromptGroup, Response], str], near: Near | None) -> None:
        self.name, self.near, self._within = name, near, within
        self._twins: Twins | None = None

    def fit(self, groups: Iterable[PromptGroup]) -> None:
        """Read all responses, once."""
        self._twins = Twins(self.near, self._texts(groups))

    def _texts(self, groups: Iterable[PromptGroup]) -> Iterator[tuple[str, Key, str]]:
        for group in groups:
            for response in group.responses:
                yield response.text, _key(group, response), self._space(group, response)

    def _space(self, group: PromptGroup, response: Response) -> str:
        return f"{response.verdict}\0{self._within(group, response)}"

    def findings(self) -> dict[str, list[dict[str, Any]]]:
        """How many texts were compared and found alike."""
        return {"counts": [dict(_fitted(self).counts)]}

    def __call__(self, group: PromptGroup) -> Found:
        """Responses go if one before them in the order above says the same."""
        twins, gone = _fitted(self), {}
        for place, response in enumerate(group.responses):
            twin = twins.of(response.text, self._space(group, response))
            if twin is not None and twin.kept != _key(group, response):
                gone[place] = _why(twin, response.text, self.near)
        return Found(responses=gone)


def one_source(group: PromptGroup, response: Response) -> str:
    """A space for the samples of one source to one prompt."""
    return f"{group.id}\0{response.source}"


def one_prompt(group: PromptGroup, response: Response) -> str:
    """A space for all responses to one prompt."""
    return group.id


def all_prompts(group: PromptGroup, response: Response) -> str:
    """One space: a short answer that is right for many prompts is kept for one of them only."""
    return ""


def _key(group: PromptGroup, response: Response) -> Key:
    return group.id, response.source, response.sample


def _fitted(rule: DuplicatePrompts | DuplicateResponses) -> Twins:
    assert rule._twins is not None, "`fit` comes first"
    return rule._twins


def _why(twin: Twin, text: str, near: Near | None) -> str:
    kept = " ".join(str(part) for part in twin.kept)
    if twin.similarity == 1.0:
        how = f"says the same as {excerpt(kept)}"
    elif near is not None and twin.similarity >= near.threshold:
        how = f"near duplicate of {excerpt(kept)} (Jaccard {twin.similarity:.2f})"
    else:
        how = f"near duplicates lead from it to {excerpt(kept)} (Jaccard {twin.similarity:.2f})"
    return f"{how}: {excerpt(text)}"
