"""The scorer `reward_model`: any sequence classifier of transformers that was trained to grade answers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from fuserl.errors import FuserlError
from fuserl.models.load import load_tokenizer
from fuserl.records.store import file_digest
from fuserl.rewards.classifier import Classifier
from fuserl.rewards.heads import config_of
from fuserl.rewards.prompt_forms import Encoded, Form
from fuserl.rewards.protocol import Item, Score
from fuserl.settings import require_whole

ON_TOO_LONG = ("leave_out", "error")


class RewardModel:
    """A model's number for each answer. It verifies nothing, so there is no verdict.

    An empty answer is not shown to it, one that is too long is not cut: both get no number, and say why.

    Args:
        path: a folder or a hub name.
        form: tokenizer -> `prompt_forms.Form`.
        classifier: the checkpoint -> `classifier.Classifier`.
        max_length: tokens of a conversation; None: as many as the model states.
        window: answers that are sorted by length together.

    Raises:
        FuserlError: there is no such tokenizer, template, device or setting. The weights are read when they are needed.
    """

    def __init__(
        self,
        *,
        name: str,
        path: str,
        form: Callable[[Any], Form],
        classifier: Callable[..., Classifier],
        revision: str | None,
        max_length: int | None,
        on_too_long: str,
        window: int,
        trust_remote_code: bool,
    ) -> None:
        if on_too_long not in ON_TOO_LONG:
            raise FuserlError(
                f"`{on_too_long}` is no way to treat long conversations",
                where=f"`rewards.{name}.on_too_long`",
                hint=f"one of {', '.join(ON_TOO_LONG)}",
            )
        self.name, self.path, self.revision = name, str(Path(path).expanduser()), revision
        require_whole(1, window=window, max_length=max_length)
        self.on_too_long, self.window = on_too_long, window
        with _told_for(name):
            self.form = form(load_tokenizer(self.path, revision=revision))
            self.config = config_of(self.path, revision=revision, trust_remote_code=trust_remote_code)
        self.max_length = max_length or getattr(self.config.get_text_config(), "max_position_embeddings", None)
        self.classifier = classifier(
            self.path, revision=revision, trust_remote_code=trust_remote_code, max_length=self.max_length
        )

    def identity(self) -> Mapping[str, Any]:
        """Weights by content, form, and how the number is read."""
        return {
            "weights": self._weights,
            "form": dict(self.form.identity()),
            "classifier": dict(self.classifier.identity()),
            "max_length": self.max_length,
        }

    def context(self, item: Item) -> None:
        """Nothing else of the group."""

    def score(self, items: Iterable[Item]) -> Iterator[Score]:
        """A number an answer, a batch at a time.

        Raises:
            FuserlError: the model cannot be loaded, does not fit, or a conversation is too long and must not be.
        """
        stream = iter(items)
        while window := list(islice(stream, self.window)):
            yield from self._window(window)

    def close(self) -> None:
        """Give back the devices' memory."""
        self.classifier.close()

    def _window(self, items: list[Item]) -> Iterator[Score]:
        asked = [item for item in items if item.response.text.strip()]
        yield from (Score(i.key, detail={"why": "the answer is empty"}) for i in items if not i.response.text.strip())
        encoded = self.form.encode([(item.group.prompt, item.response.text) for item in asked])
        fitting: list[tuple[Item, list[int]]] = []
        for item, one in zip(asked, encoded, strict=True):
            if why := self._refused(item, one):
                yield Score(item.key, detail=why)
            else:
                fitting.append((item, one.ids))
        for place, number in self.classifier.numbers([ids for _, ids in fitting]):
            yield Score(fitting[place][0].key, number)

    def _refused(self, item: Item, one: Encoded) -> dict[str, Any]:
        """Why the answer cannot be shown to the model; empty where it can."""
        if one.refused:
            return {"why": "the chat template refuses the conversation", "message": one.refused}
        if self.max_length is None or len(one.ids) <= self.max_length:
            return {}
        if self.on_too_long == "error":
            raise FuserlError(
                f"the conversation has {len(one.ids):,} tokens, `{self.name}` reads {self.max_length:,}",
                where=f"prompt `{item.group.id}`, source `{item.response.source}`",
                hint=f"`rewards.{self.name}.on_too_long=leave_out` gives such answers no number",
            )
        return {"why": f"longer than {self.max_length} tokens", "tokens": len(one.ids)}

    @cached_property
    def _weights(self) -> Any:
        """Of a folder, the digest of its files; on the hub, name and commit."""
        folder = Path(self.path)
        if not folder.is_dir():
            return [self.path, getattr(self.config, "_commit_hash", None) or self.revision]
        files = sorted([*folder.glob("*.safetensors"), *folder.glob("config.json"), *folder.glob("*.py")])
        with ThreadPoolExecutor(4) as threads:
            content = [
                f"{file.name} {digest}" for file, digest in zip(files, threads.map(file_digest, files), strict=True)
            ]
        return hashlib.sha256("\n".join(content).encode()).hexdigest()[:24]


@contextmanager
def _told_for(name: str) -> Iterator[None]:
    """Mistakes of loading, told by the scorer's settings instead of a target's."""
    try:
        yield
    except FuserlError as error:
        where, hint = (text.replace("target.", f"rewards.{name}.") for text in (error.where, error.hint))
        hint = hint.replace("chat_template", "form.chat_template")
        raise FuserlError(error.what, where=where, hint=hint) from error
