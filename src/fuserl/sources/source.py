"""A source: which model, under which template, sampled how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from fuserl.errors import FuserlError
from fuserl.sources.protocol import Sampling


@dataclass(frozen=True)
class Source:
    """A model that answers. The fields and their reasons are those of `conf/source/`."""

    name: str  # under which its responses are kept
    path: str  # Hugging Face folder or hub name; for a server, the model's name there
    sampling: Sampling
    samples: int = 1  # responses a prompt
    revision: str | None = None
    chat_template: str | None = None  # null: the model's own; plain; a .jinja file; the template itself
    date_string: str = "26 Jul 2024"  # the day that templates are told
    system: str | None = None  # a system turn before prompts that have none
    dtype: str = "auto"
    context: int | None = None  # tokens of prompt and answer together; null: what the model states
    trust_remote_code: bool = False
    licence: str | None = None

    def identity(self) -> dict[str, Any]:
        """What of the source decides an answer, for `request_key`."""
        ignored = ("name", "sampling", "samples", "licence", "trust_remote_code")
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in ignored}

    def plain(self) -> dict[str, Any]:
        """All of it as plain data, for manifests; `source_of` reads it back."""
        return asdict(self)


def source_of(name: str, settings: Mapping[str, Any]) -> Source:
    """A source from its configuration.

    Raises:
        FuserlError: a setting is missing, unknown, or out of its range.
    """
    where = f"`sources.{name}`"
    given = {key: value for key, value in settings.items() if key != "name"}
    known = {field.name for field in fields(Source)} - {"name"}
    if unknown := sorted(given.keys() - known):
        raise FuserlError(
            f"a source has no setting `{unknown[0]}`", where=where, hint=f"it has {', '.join(sorted(known))}"
        )
    if not given.get("path"):
        raise FuserlError("the source has no model", where=f"`sources.{name}.path`", hint="give a folder or a hub name")
    sampling = dict(given.pop("sampling", None) or {})
    sampling["stop"] = tuple(sampling.get("stop") or ())
    try:
        source = Source(name=name, sampling=Sampling(**sampling), **given)
    except TypeError as error:
        raise FuserlError(
            f"the sampling is not understood ({error})",
            where=f"`sources.{name}.sampling`",
            hint=f"its settings are {', '.join(field.name for field in fields(Sampling))}",
        ) from error
    for key, value, fits, rule in _rules(source):
        if isinstance(value, bool) or not isinstance(value, int | float) or not fits:
            raise FuserlError(f"`{key}` is {value!r}", where=f"`sources.{name}`", hint=f"it must be {rule}")
    return source


def _rules(source: Source) -> list[tuple[str, Any, bool, str]]:
    """(setting, value, whether it is in its range, the range); numbers only are compared."""
    sampling = source.sampling

    def within(value: Any, low: float, high: float = float("inf")) -> bool:
        return isinstance(value, int | float) and low <= value <= high

    return [
        ("samples", source.samples, within(source.samples, 1), "1 or more"),
        ("sampling.max_tokens", sampling.max_tokens, within(sampling.max_tokens, 1), "1 or more"),
        ("sampling.temperature", sampling.temperature, within(sampling.temperature, 0), "0 (greedy) or more"),
        ("sampling.top_p", sampling.top_p, within(sampling.top_p, 1e-9, 1), "above 0, at most 1"),
        ("sampling.top_k", sampling.top_k, within(sampling.top_k, 0), "0 (no limit) or more"),
        ("sampling.min_p", sampling.min_p, within(sampling.min_p, 0, 1), "from 0 to 1"),
        (
            "sampling.repetition_penalty",
            sampling.repetition_penalty,
            within(sampling.repetition_penalty, 1e-9),
            "above 0; 1 is none",
        ),
    ]
