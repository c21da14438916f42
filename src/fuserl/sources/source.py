"""A source: which model, under which template, sampled how."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from fuserl.errors import FuserlError
from fuserl.records.store import file_digest
from fuserl.sources.protocol import Sampling

DECIDING = (".safetensors", ".json", ".jinja", ".model", ".txt", ".tiktoken")  # files of a model that decide answers
NEVER_READ = ("generation_config.json", "special_tokens_map.json")  # by an engine; the second repeats the tokenizer's


@dataclass(frozen=True)
class Source:
    """A model that answers. The fields and their reasons are those of `conf/source/`."""

    name: str  # under which its responses are kept
    path: str  # Hugging Face folder or hub name; for a server, the model's name there
    sampling: Sampling
    samples: int | Mapping[str, int] = (
        1  # responses a prompt; or by domain, `otherwise` for those not named (else none)
    )
    revision: str | None = None
    chat_template: str | None = None  # null: the model's own; plain; the template itself, where a file was given too
    date_string: str = "26 Jul 2024"  # the day that templates are told
    system: str | None = None  # a system turn before prompts that have none
    dtype: str = "auto"
    context: int | None = None  # tokens of prompt and answer together; null: what the model states
    trust_remote_code: bool = False
    licence: str | None = None
    content: str | None = None  # digest of a local model's files, see `with_content`

    def identity(self) -> dict[str, Any]:
        """What of the source decides an answer, for `request_key`. A copied folder is the same model."""
        ignored = ("name", "sampling", "samples", "licence", "trust_remote_code", "content")
        decisive = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in ignored}
        return decisive | {"path": self.content or self.path}

    def samples_of(self, domain: str) -> int:
        """Responses to a prompt of this domain.

        >>> Source("a", "m", Sampling(9), samples={"code": 8, "otherwise": 5}).samples_of("math")
        5
        """
        if isinstance(self.samples, int):
            return self.samples
        return self.samples.get(domain, self.samples.get("otherwise", 0))

    def with_samples_of(self, other: Source) -> Source:
        """With as many samples in every domain as the one of the two that has more."""
        if self.samples == other.samples:
            return self
        named = [one.samples for one in (self, other) if isinstance(one.samples, Mapping)]
        domains = sorted({"otherwise"}.union(*named))
        most = {domain: max(self.samples_of(domain), other.samples_of(domain)) for domain in domains}
        return replace(self, samples=most if named else most["otherwise"])

    def plain(self) -> dict[str, Any]:
        """All of it as plain data, for manifests; `source_of` reads it back."""
        return asdict(self) | {"sampling": self.sampling.plain()}

    def local_files(self) -> list[Path]:
        """The files of a local model that decide its answers; none where the path is a name."""
        return files_of(self.path)

    def with_content(self) -> Source:
        """The source known by what its folder holds, so that a model trained anew there is another one.

        Reads all bytes of a local model; a name on the hub or at a server is left as it is.
        """
        return replace(self, content=content_of(self.path) or self.content)


def files_of(path: str) -> list[Path]:
    """The files of a local model that decide what it says; none where the path is a name."""
    folder = Path(path).expanduser()
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    return [file for file in inside if file.suffix in DECIDING and file.name not in NEVER_READ and file.is_file()]


def content_of(path: str) -> str | None:
    """Digest of a local model's files, all of whose bytes are read, an adapter's with its base's; None for a name."""
    files = files_of(path)
    if not files:
        return None
    base = _base_of(path)
    with ThreadPoolExecutor(4) as pool:
        parts = [f"{file.name} {digest}\n" for file, digest in zip(files, pool.map(file_digest, files), strict=True)]
    parts += [f"base {content_of(base) or base}\n"] if base else []
    return "content:" + hashlib.sha256("".join(parts).encode()).hexdigest()[:32]


def _base_of(path: str) -> str | None:
    """What a LoRA adapter's folder was trained on; None where it is none, or a broken one, which loading tells."""
    try:
        known = json.loads((Path(path).expanduser() / "adapter_config.json").read_text(encoding="utf-8"))
        return known.get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        return None


def source_of(name: str, settings: Mapping[str, Any]) -> Source:
    """A source from its configuration, or from what `Source.plain` gave.

    Raises:
        FuserlError: a setting is missing, unknown, or out of its range.
    """
    where = f"`sources.{name}`"
    if not name.strip() or not name.isprintable():
        raise FuserlError(
            f"{name!r} is no name of a source",
            where="`sources`",
            hint="give letters that can be seen, as in `+sources.mine.path=...`",
        )
    given = {key: value for key, value in settings.items() if key != "name"}
    if not given.get("path"):
        raise FuserlError("the source has no model", where=f"`sources.{name}.path`", hint="give a folder or a hub name")
    drawn = sampling_of(given.pop("sampling", None) or {}, f"`sources.{name}.sampling`")
    _check(given, RULES, where)
    template = _template(name, given.pop("chat_template", None))
    return Source(name=name, sampling=drawn, chat_template=template, **given)


def sampling_of(settings: Mapping[str, Any], where: str) -> Sampling:
    """How answers are drawn, from its configuration.

    Raises:
        FuserlError: a setting is missing, unknown, or out of its range.
    """
    sampling = dict(settings)
    if sampling.get("max_tokens") is None:
        raise FuserlError("an answer's length has no limit", where=where, hint="give `max_tokens`")
    stop = sampling.get("stop") or ()
    sampling["stop"] = [stop] if isinstance(stop, str) or not isinstance(stop, Iterable) else list(stop)
    _check(sampling, SAMPLING_RULES, where)
    return Sampling(**sampling | {"stop": tuple(sampling["stop"])})


def _template(name: str, value: str | None) -> str | None:
    """What a template's file says: the file's name says nothing about the answers."""
    if not value or not value.endswith((".jinja", ".j2")):
        return value
    try:
        return Path(value).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FuserlError(
            f"the chat template cannot be read ({error})",
            where=f"`sources.{name}.chat_template={value}`",
            hint="give a file that is there, the template itself, or `plain`",
        ) from error


def _check(settings: Mapping[str, Any], rules: Mapping[str, Rule], where: str) -> None:
    if unknown := sorted(settings.keys() - rules.keys()):
        raise FuserlError(f"there is no setting `{unknown[0]}`", where=where, hint=f"there are {', '.join(rules)}")
    for key, value in settings.items():
        fits, rule = rules[key]
        if not fits(value):
            raise FuserlError(f"`{key}` is {value!r}", where=where, hint=f"it must be {rule}")


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _text_or_null(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _whole(low: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= low


def _number(low: float, high: float = 1e9) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _samples(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return _whole(1)(value)
    return all(map(_text, value)) and all(map(_whole(0), value.values())) and any(value.values())


Rule = tuple[Callable[[Any], bool], str]  # whether a value fits, and what would
RULES: dict[str, Rule] = {
    "path": (_text, "a folder or a name"),
    "samples": (_samples, "1 or more, or by domain, such as {code: 8, otherwise: 5}"),
    "revision": (_text_or_null, "a text, or null"),
    "chat_template": (_text_or_null, "plain, a .jinja file, a template, or null"),
    "date_string": (_text, "a day, such as 26 Jul 2024"),
    "system": (_text_or_null, "a text, or null"),
    "dtype": (_text, "auto, bfloat16, float32, ..."),
    "context": (lambda value: value is None or _whole(1)(value), "1 or more, or null"),
    "trust_remote_code": (lambda value: isinstance(value, bool), "true or false"),
    "licence": (_text_or_null, "a text, or null"),
    "content": (_text_or_null, "left to `fuserl generate`"),
}
SAMPLING_RULES: dict[str, Rule] = {
    "max_tokens": (_whole(1), "1 or more"),
    "temperature": (_number(0), "0 (greedy) or more"),
    "top_p": (_number(1e-9, 1), "above 0, at most 1"),
    "top_k": (_whole(0), "0 (no limit) or more"),
    "min_p": (_number(0, 1), "from 0 to 1"),
    "repetition_penalty": (_number(1e-9), "above 0; 1 is none"),
    "presence_penalty": (_number(-2, 2), "from -2 to 2; 0 is none"),
    "frequency_penalty": (_number(-2, 2), "from -2 to 2; 0 is none"),
    "stop": (lambda value: all(isinstance(one, str) and one for one in value), "a list of texts"),
}
