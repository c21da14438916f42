"""The verb `align`: groups x models -> fused token distributions in the target's vocabulary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from fuserl import settings
from fuserl.distributions.aligned import Aligned, Place
from fuserl.distributions.aligners import Aligner
from fuserl.distributions.appending import DistributionsWriter
from fuserl.distributions.collect import Collector, collected
from fuserl.distributions.fused_folder import FusedFolder
from fuserl.distributions.fusing import (
    Blend,
    Carried,
    Criterion,
    Rows,
    Same,
    blended,
    compared,
    own_rows,
    stored,
    weights_of,
)
from fuserl.distributions.matching import Matching
from fuserl.distributions.readers import Model, Reader, keys_of, reader
from fuserl.distributions.store import Distributions
from fuserl.distributions.summary import fused_from, read_by, tables
from fuserl.distributions.topk import Combine, TopK
from fuserl.distributions.vocabulary import Together
from fuserl.errors import FuserlError
from fuserl.objectives.supervised import pooled
from fuserl.objectives.terms import within
from fuserl.records.formats import ReadReport
from fuserl.records.journal import locked
from fuserl.records.manifest import write_text_atomically
from fuserl.records.reading import Side, sides_of
from fuserl.settings import plain
from fuserl.terminal import bar, say, say_table
from fuserl.tokens.plan import fitting
from fuserl.tokens.scores import scores_of

FREE = ("output", "cache", "progress_bar", "collector.device", "collector.max_tokens", "collector.logits_memory")
TOGETHER = "all"  # the fused store's name where all sources give into one
TARGET = "target"  # the target's name among the models


@dataclass(frozen=True)
class Parts:
    """The functions that the configuration has chosen."""

    collector: Collector
    aligner: Aligner
    matching: Matching
    collision: Combine
    blend: Blend
    criterion: Criterion

    @classmethod
    def of(cls, cfg: DictConfig) -> Parts:
        """Made from their groups.

        Raises:
            FuserlError: one cannot be.
        """
        try:
            return cls(**{name: instantiate(cfg[name], _convert_="all") for name in cls.__dataclass_fields__})
        except InstantiationException as error:
            raise (error.__cause__ if isinstance(error.__cause__, FuserlError) else error) from None


@dataclass(frozen=True)
class Texts:
    """The responses that are aligned: every different one once, in the order of the data."""

    side: Side
    target: Reader
    used: np.ndarray  # [N, K]

    @cached_property
    def places_of(self) -> dict[str, tuple[int, int]]:
        """Key -> (row, column)."""
        return keys_of(self.target.store, self.used)

    @cached_property
    def key_of(self) -> dict[tuple[int, int], str]:
        """(row, column) -> key, of every used response; equal ones share theirs."""
        store = self.target.store
        rows, columns = np.nonzero(self.used & np.asarray(store.valid))
        places = zip(rows.tolist(), columns.tolist(), strict=True)
        return {place: bytes(store.keys[place]).hex() for place in places}

    def places(self) -> Iterator[Place]:
        """All of them; the data is read once more."""
        columns: dict[int, list[int]] = {}
        for row, column in self.places_of.values():
            columns.setdefault(row, []).append(column)
        for row, group in enumerate(self.side.groups(ReadReport())):
            for column in columns.get(row, ()):
                yield Place(row, column, group.responses[column].text)


def align(cfg: DictConfig) -> Path:
    """Align and fuse as `conf/align.yaml` says; a finished folder is left alone, an unfinished one is continued.

    Returns:
        The folder, with one store for each training run in `fused/`.

    Raises:
        FuserlError: data, models or settings cannot work; what was read before is kept.
    """
    given = plain(cfg)
    parts, models = Parts.of(cfg), _models(given)
    within("k", given["k"], "[1, 1000]")
    decisive = settings.decisive(given, FREE)
    folder = FusedFolder(given["output"] or Path("runs") / settings.digest("align", given, FREE))
    side, _ = sides_of(cfg.data)
    inputs = {"data": side.content(), "models": {one.name: one.identity() for one in models}}
    if folder.finished(decisive, inputs):
        say(f"{folder.path} is finished already; nothing to do")
        return folder.path
    with locked(folder.path):
        write_text_atomically(folder.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(given)))
        _run(_Job(given, parts, Path(given["cache"]).expanduser(), folder, side, models), decisive, inputs)
    return folder.path


def _models(given: Mapping[str, Any]) -> list[Model]:
    """The target first."""
    if not given["sources"]:
        raise FuserlError(
            "no source is chosen", where="`sources`", hint="give `+sources.NAME.path=FOLDER_OR_HUB_NAME`, once a model"
        )
    if reserved := {TARGET, TOGETHER} & given["sources"].keys():
        raise FuserlError(f"a source cannot be called `{reserved.pop()}`", where="`sources`", hint="give another name")
    named = {TARGET: {**given["target"], "trust_remote_code": False}, **given["sources"]}
    models = [Model.of(name, one, given["unsaid"]) for name, one in named.items()]
    return [one.with_content() for one in models]


@dataclass(frozen=True)
class _Job:
    given: Mapping[str, Any]
    parts: Parts
    cache: Path
    folder: FusedFolder
    side: Side
    models: Sequence[Model]  # the target first

    def readers(self) -> list[Reader]:
        """Every model with the texts in its tokens, under the target's template."""
        target = self.given["target"]
        how = {"date_string": target["date_string"], "progress_bar": self.given["progress_bar"]}
        first = reader(self.models[0], self.side, self.cache, chat_template=target["chat_template"], **how)
        theirs = first.template.chat_template
        return [first, *(reader(one, self.side, self.cache, chat_template=theirs, **how) for one in self.models[1:])]

    def texts(self, target: Reader) -> Texts:
        """What training would use, see `pool`, `size` and `data.max_length`.

        Raises:
            FuserlError: nothing is left.
        """
        used = np.array(pooled(scores_of(target.store), pool=self.given["pool"], size=self.given["size"]), dtype=bool)
        data = self.given["data"]
        keep = fitting(target.store, used, max_length=data["max_length"], on_too_long=data["on_too_long"])
        rows = np.zeros(len(used), dtype=bool)
        rows[keep.keep] = True
        if keep.dropped:
            say(f"left out: {len(keep.dropped):,} x {keep.dropped[0][1]}")
        texts = Texts(self.side, target, used & rows[:, None])
        if not texts.places_of:
            raise FuserlError(
                "no text is left to align",
                where=f"`data.path={data['path']}`",
                hint="widen `data.part`, `data.limit` or `data.max_length`, or look at the rows",
            )
        return texts

    def outputs(self) -> dict[str, list[int]]:
        """Name of a fused store -> the models that give into it, by place; the target, 0, is one of them."""
        if self.given["pairwise"]:
            return {one.name: [0, place] for place, one in enumerate(self.models) if place}
        return {TOGETHER: list(range(len(self.models)))}


def _run(job: _Job, decisive: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
    readers = job.readers()
    texts = job.texts(readers[0])
    show = job.given["progress_bar"]
    say(f"align: {len(texts.places_of):,} texts, {len(readers)} models, writing {job.folder.path}")
    read = [
        collected(one, texts.key_of, texts.used, job.parts.collector, job.cache, k=job.given["k"], progress_bar=show)
        for one in readers
    ]
    sources = [_source(job, one, readers[0], texts, found) for one, found in zip(readers[1:], read[1:], strict=True)]
    _fuse(job, readers, texts, read, sources)
    num_bytes = {texts.key_of[one.row, one.column]: len(one.text.encode()) for one in texts.places()}
    models = [read_by(one.model.name, found, num_bytes) for one, found in zip(readers, read, strict=True)]
    fused = [fused_from(name, Distributions(job.folder.store(name))) for name in job.outputs()]
    job.folder.finish(decisive, inputs, {"models": models, "fused": fused})
    for table in tables(models, fused):
        say_table(table)
    say(f"done: {job.folder.path}")


def _source(job: _Job, source: Reader, target: Reader, texts: Texts, read: Distributions) -> Carried | Same:
    """With its vocabulary map; what is aligned for the map is kept."""
    if source.vocabulary.digest == target.vocabulary.digest:
        return Same(read)
    order = ",".join(texts.places_of)
    aligned = Aligned(source, target, job.parts.aligner, job.cache, order, job.given["progress_bar"])
    together, size = Together(len(source.vocabulary)), len(texts.places_of)
    if job.parts.matching.reads_matches:
        for pair, alignment in aligned.of(texts.places(), size):
            together.add(alignment, pair.source.ids, pair.target.ids)
    maps = job.cache / "vocabularies"
    to_target = job.parts.matching.to_target(source.vocabulary, target.vocabulary, together.matches(), maps)
    return Carried(aligned, read, job.parts.matching, job.parts.collision, to_target)


def _fuse(
    job: _Job, readers: Sequence[Reader], texts: Texts, read: Sequence[Distributions], sources: Sequence[Carried | Same]
) -> None:
    """Text by text; those that are in all stores already are passed over."""
    outputs, size, names = job.outputs(), len(texts.places_of), [one.model.name for one in readers]
    target, show = readers[0], job.given["progress_bar"]
    made_from = {"tokenizer": target.template.tokenizer_digest, "template": target.template.hash}
    made_from |= {"texts": target.store.digest, "settings": settings.digest("align", job.given, FREE)}
    made_from |= {"models": {one.name: one.identity() for one in job.models}}
    with ExitStack() as closing, bar("fusing", lambda: size, show=show) as told:
        writers = {}
        for name, members in outputs.items():
            k = job.given["k"] * job.parts.blend.num_mixed(len(members))
            store = DistributionsWriter(
                job.folder.store(name), k=k, vocabulary=len(target.vocabulary), made_from={**made_from, "of": name}
            )
            writers[name] = closing.enter_context(store)
        streams = zip(texts.places(), *(one.stream(texts.places(), size) for one in sources), strict=True)
        for done, (place, *bring) in enumerate(streams):
            key = texts.key_of[place.row, place.column]
            open_ = [name for name, writer in writers.items() if key not in writer]
            if open_:
                one = _Text(key, place, [store[key] for store in read], bring, names)
                for name in open_:
                    one.write(writers[name], outputs[name], job.parts)
            told(done + 1)


@dataclass(frozen=True)
class _Text:
    """One text, as all models read it."""

    key: str
    place: Place
    samples: Sequence[Any]  # of `store.Sample`, the target's first
    bring: Sequence[Any]  # of each source: (key, own rows, counts) -> its rows in the target's vocabulary
    names: Sequence[str]

    def write(self, writer: DistributionsWriter, members: Sequence[int], parts: Parts) -> None:
        """Fuse what some models say."""
        size = len(self.place.text.encode())
        ces = [compared(self.samples[member], size, parts.criterion) for member in members]
        able = self.samples[0].notes["nats"] is not None  # what the target cannot read, FuseChat leaves out
        weights = weights_of(ces, parts.blend) if able else [0.0] * len(ces)
        own, origins = own_rows(self.samples[0]), {}
        rows: list[Rows] = []
        for member, weight in zip(members, weights, strict=True):
            counts: Counter[str] = Counter()
            rows.append(own if not weight or not member else self.bring[member - 1](self.key, own, counts))
            if counts:
                origins[self.names[member]] = dict(counts)
        given = {self.names[m]: weight for m, weight in zip(members, weights, strict=True) if weight}
        fused = blended(rows, weights) if given else Rows(_none(own.top), np.zeros(len(own.top)))
        notes = {"weights": given, "origins": origins}
        writer.add(self.key, stored(fused), ce=self.samples[0].ce, tail=fused.tail, notes=notes)


def _none(top: TopK) -> TopK:
    return TopK(np.full_like(top.ids, -1), np.full_like(top.logps, -np.inf))
