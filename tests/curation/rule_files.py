"""What the tests of rules share: a rule as its file in `conf/rule/` makes it, and groups to show it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from fuserl.records.formats import read_groups, splits_of
from fuserl.records.rows import Needs
from fuserl.records.schema import Message, PromptGroup, Response
from fuserl.settings import config_folder


def rule_of(name: str, **settings: Any) -> Any:
    """The rule of `conf/rule/NAME.yaml`, with some settings changed; what it finds wrong is raised as it is."""
    cfg = OmegaConf.load(config_folder() / "rule" / f"{name}.yaml")
    try:
        return instantiate(OmegaConf.merge(cfg, settings), _convert_="all")
    except InstantiationException as error:
        raise error.__cause__ or error from error


def group(*texts: str, prompt: str = "Why?", name: str = "p", domain: str = "general", **settings: Any) -> PromptGroup:
    """A prompt whose one source gave these answers."""
    responses = tuple(Response("s", text, number, **settings) for number, text in enumerate(texts))
    return PromptGroup(name, (Message("user", prompt),), responses, domain)


def prompts(texts: Sequence[str]) -> list[PromptGroup]:
    """A group a text, named by its place."""
    return [group("an answer", prompt=text, name=f"p{place:04d}") for place, text in enumerate(texts)]


def real_groups(folder: Path, *, responses: bool = True) -> Iterator[PromptGroup]:
    """All splits of a set, empty answers with them."""
    for split in splits_of(folder):
        yield from read_groups(folder, split=split, needs=Needs(responses=responses, text=False))
