"""From a mapping to a group, with every mistake named by its field."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fuserl.records.schema import ROLES, VERDICTS, Message, PromptGroup, Response


class BadField(Exception):
    """A field of a row is wrong; the reader adds file and row."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"`{name}` {what}")


@dataclass
class RowResult:
    """A group, or none where the row is bad, with what had to be left out."""

    group: PromptGroup | None
    left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Needs:
    """What the reader of a row asks of its responses."""

    responses: bool = True  # False: the prompt is all that is wanted, and its responses are not read
    at_least: int = 1  # responses of a row; 0: it may have none yet
    text: bool = True  # in every response; False: an empty answer is an answer, to be counted or dropped by rule


def group_of(
    row: Mapping[str, Any], *, skip: bool, fallback_id: Callable[[tuple[Message, ...]], str], needs: Needs
) -> RowResult:
    """Check one row and build its group.

    Args:
        skip: leave out bad responses as long as one remains, instead of raising.
        fallback_id: names the prompt of a row that has no id.

    Raises:
        BadField: something is wrong, and cannot be left out.
    """
    prompt = _prompt(row.get("prompt"))
    responses, left_out = _responses(row.get("responses"), skip=skip, needs=needs) if needs.responses else ([], [])
    prompt_id, domain = row.get("prompt_id"), row.get("domain")
    known = ("prompt_id", "prompt", "responses", "domain", "reference")
    group = PromptGroup(
        id=fallback_id(prompt) if prompt_id is None else _text(prompt_id, "prompt_id"),
        prompt=prompt,
        responses=tuple(responses),
        domain="general" if domain is None or domain == "" else _text(domain, "domain"),
        reference=_optional_text(row.get("reference"), "reference"),
        extra={key: value for key, value in row.items() if key not in known},
    )
    return RowResult(group, left_out)


def _prompt(value: Any) -> tuple[Message, ...]:
    if value is None or value == "" or value == []:
        raise BadField("prompt", "is missing or empty")
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise BadField("prompt", f"must be a text or a list of messages, not {type(value).__name__}")
    messages = tuple(message_of(message, f"prompt[{index}]") for index, message in enumerate(value))
    if messages[-1].role != "user":
        raise BadField("prompt", f"must end with the user's turn, not the {messages[-1].role}'s")
    return messages


def message_of(value: Any, name: str) -> Message:
    """Check one message."""
    if not isinstance(value, Mapping):
        raise BadField(name, "must be an object with `role` and `content`")
    role = value.get("role")
    if role not in ROLES:
        raise BadField(f"{name}.role", f"is {role!r}, not one of {', '.join(ROLES)}")
    # Tables fill in nulls where some messages have a field and others have not: null is absent.
    extra = {key: item for key, item in value.items() if key not in ("role", "content") and item is not None}
    return Message(role, _text(value.get("content"), f"{name}.content"), extra)


def _responses(value: Any, *, skip: bool, needs: Needs) -> tuple[list[Response], list[str]]:
    if not needs.at_least and value in (None, []):
        return [], []
    if not isinstance(value, list) or not value:
        raise BadField("responses", "is missing or empty")
    found: list[Response] = []
    left_out: list[str] = []
    numbers = Numbers(value)
    for index, row in enumerate(value):
        try:
            response = _response(row, f"responses[{index}]", numbers, needs)
        except BadField as error:
            if not skip:
                raise
            left_out.append(str(error))
            continue
        found.append(response)
    if not found:
        raise BadField("responses", f"holds no usable response ({left_out[0]})")
    return found, left_out


class Numbers:
    """The sample numbers of one row's responses: those it gives are used once, the others keep off them."""

    def __init__(self, responses: list[Any]) -> None:
        rows = [(row.get("source"), row.get("sample")) for row in responses if isinstance(row, Mapping)]
        self.given = {(name, sample) for name, sample in rows if isinstance(name, str) and isinstance(sample, int)}
        self.used: set[tuple[str, int]] = set()
        self.next: dict[str, int] = {}

    def take(self, sample: Any, source: str, name: str) -> int:
        """The response's number, checked, or the source's next free one.

        Raises:
            BadField: it is no number, or an earlier response of the source has it.
        """
        if sample is None:
            sample = self.next.get(source, 0)
            while (source, sample) in self.given:
                sample += 1
        if isinstance(sample, bool) or not isinstance(sample, int) or not 0 <= sample < 2**31:
            raise BadField(name, f"must be a whole number from 0, not {sample!r}")
        if (source, sample) in self.used:
            raise BadField(name, f"is {sample}, as an earlier response of `{source}` has it")
        self.used.add((source, sample))
        self.next[source] = max(self.next.get(source, 0), sample + 1)
        return sample


def _response(row: Any, name: str, numbers: Numbers, needs: Needs) -> Response:
    if not isinstance(row, Mapping):
        raise BadField(name, "must be an object")
    source = _text(row.get("source"), f"{name}.source")
    text = _text(row.get("text"), f"{name}.text", may_be_empty=not needs.text)
    verdict = row.get("verdict")
    if verdict is not None and verdict not in VERDICTS:
        raise BadField(f"{name}.verdict", f"is {verdict!r}, not one of {', '.join(VERDICTS)} or null")
    sampling = row.get("sampling")
    if sampling is not None and not isinstance(sampling, Mapping):
        raise BadField(f"{name}.sampling", f"must be an object or null, not {type(sampling).__name__}")
    known = ("source", "text", "sample", "reward", "verdict", "weight", "finish_reason", "sampling")
    return Response(
        source=source,
        text=text,
        reward=_number(row.get("reward"), f"{name}.reward"),
        verdict=verdict,
        weight=_number(row.get("weight"), f"{name}.weight"),
        finish_reason=_optional_text(row.get("finish_reason"), f"{name}.finish_reason"),
        sampling=sampling,
        extra={key: item for key, item in row.items() if key not in known},
        sample=numbers.take(row.get("sample"), source, f"{name}.sample"),  # last: a bad response uses up no number
    )


def _text(value: Any, name: str, *, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        raise BadField(name, "is missing" if value is None else f"must be a text, not {type(value).__name__}")
    if not value.strip() and not may_be_empty:
        raise BadField(name, "is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadField(name, "holds a lone surrogate, which is no valid Unicode text") from error
    return value


def _optional_text(value: Any, name: str) -> str | None:
    return (
        None if value is None or value == "" else _text(str(value) if isinstance(value, int | float) else value, name)
    )


def _number(value: Any, name: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadField(name, f"must be a number or null, not {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise BadField(name, f"is {number}, not a finite number")
    return number
