"""The folder of `generate`: what was asked, what was answered, what failed; the data set is made from these."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote

from omegaconf import OmegaConf

from fuserl.errors import FuserlError
from fuserl.records.journal import Journal
from fuserl.records.manifest import write_text_atomically
from fuserl.sources.asked import Asked
from fuserl.sources.source import Source, source_of


class Folder:
    """Paths and files of one output folder. Hold its lock while using it.

    `sources.json` says what each source was asked, and is written before it is asked; `journal/<source>.jsonl` holds
    its answers; `failures.jsonl` lists what the last command got no answer to.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config, self.sources = self.path / "config.yaml", self.path / "sources.json"
        self.failures, self.manifest = self.path / "failures.jsonl", self.path / "manifest.json"

    def require_ours(self) -> None:
        """Nothing else may lie there.

        Raises:
            FuserlError: the folder holds another verb's results, or a data set that `generate` did not make.
        """
        if not self.sources.exists() and (self.config.exists() or self.manifest.exists()):
            raise FuserlError(
                "the folder holds something that `fuserl generate` did not make",
                where=str(self.path),
                hint="give another folder with `output=DIR`; prompts can be read from any data set with `data.path=DIR`",
            )

    def asked_before(self) -> dict[str, Asked]:
        """What earlier commands asked, by source.

        Raises:
            FuserlError: `sources.json` is broken.
        """
        if not self.sources.exists():
            return {}
        try:
            kept = json.loads(self.sources.read_text(encoding="utf-8"))
            return {name: Asked(source_of(name, one["source"]), int(one["seed"])) for name, one in kept.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FuserlError(
                f"what earlier commands asked cannot be read ({error!r})",
                where=str(self.sources),
                hint="put the file back, or delete it: then the data set holds this command's sources alone",
            ) from error

    def write(self, config: Mapping[str, Any], asked: Iterable[Asked]) -> None:
        """Write what is about to be asked, and the settings of this command."""
        known = {one.source.name: {"seed": one.seed, "source": one.source.plain()} for one in asked}
        write_text_atomically(self.sources, json.dumps(known, indent=1, sort_keys=True) + "\n")
        write_text_atomically(self.config, OmegaConf.to_yaml(OmegaConf.create(dict(config))))

    @contextmanager
    def journals(self, names: Iterable[str]) -> Iterator[dict[str, Journal]]:
        """The journals of these sources, open."""
        with ExitStack() as stack:
            yield {name: stack.enter_context(Journal(self.journal(name))) for name in names}

    def journal(self, name: str) -> Path:
        """Where a source's answers are; any name makes a file name."""
        return self.path / "journal" / f"{quote(name, safe=' ')}.jsonl"

    @contextmanager
    def failed(self) -> Iterator[TextIO]:
        """`failures.jsonl`, begun anew; away again where nothing failed."""
        with self.failures.open("w", encoding="utf-8") as file:
            yield file
        if not self.failures.stat().st_size:
            self.failures.unlink()


def joined(before: Mapping[str, Asked], now: Sequence[Asked]) -> tuple[dict[str, Asked], list[str]]:
    """(what the data set is to hold of each source, the names of sources whose settings have changed).

    A source that was asked for more samples before keeps them; one whose settings changed begins anew.
    """
    whole, changed = dict(before), []
    for one in now:
        name = one.source.name
        whole[name], old = one, before.get(name)
        if old and _decisive(old) == _decisive(one):
            whole[name] = replace(one, source=one.source.with_samples_of(old.source))
        elif old:
            changed.append(name)
    return dict(sorted(whole.items())), changed


def _decisive(asked: Asked) -> tuple[dict[str, Any], Any, int]:
    return asked.source.identity(), asked.source.sampling, asked.seed


def by_name(sources: Iterable[Source], seed: int) -> list[Asked]:
    """What is asked of sources.

    Raises:
        FuserlError: two have one name.
    """
    asked: dict[str, Asked] = {}
    for source in sources:
        if source.name in asked:
            raise FuserlError(
                f"two sources have the name `{source.name}`",
                where="`sources`",
                hint="give one of them another with `sources.NAME.name=...`",
            )
        asked[source.name] = Asked(source, seed)
    return list(asked.values())
