"""The verb `align`: groups x models -> fused token distributions in the target's vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from fuserl import settings
from fuserl.distributions.aligned import Aligned
from fuserl.distributions.aligners import Aligner
from fuserl.distributions.appending import DistributionsWriter
from fuserl.distributions.collect import Collector, collected
from fuserl.distributions.fuse import Fusion
from fuserl.distributions.fused_folder import FusedFolder
from fuserl.distributions.fusing import Blend, Carried, Criterion, Same, same_tokens
from fuserl.distributions.matching import Matching
from fuserl.distributions.readers import TARGET, TOGETHER, Model, Reader, reader, sources_of
from fuserl.distributions.store import Distributions
from fuserl.distributions.summary import fused_from, read_by, tables
from fuserl.distributions.texts import Texts, chosen_texts
from fuserl.distributions.topk import Combine
from fuserl.distributions.vocabulary import Together
from fuserl.errors import FuserlError
from fuserl.records.journal import locked
from fuserl.records.manifest import write_text_atomically
from fuserl.records.reading import Side, sides_of
from fuserl.settings import plain
from fuserl.terminal import say, say_table

FREE = (  # settings that change where and how fast, and at most rounding: a run may be continued with others
    "output",
    "cache",
    "progress_bar",
    "collector.device",
    "collector.max_tokens",
    "collector.logits_memory",
    "collector.tensor_parallel_size",
    "collector.gpu_memory_utilization",
    "collector.enforce_eager",
)


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
        return cls(**{name: _made(cfg, name) for name in cls.__dataclass_fields__})


def align(cfg: DictConfig) -> Path:
    """Align and fuse as `conf/align.yaml` says; a finished folder is left alone, an unfinished one is continued.

    Returns:
        The folder, with one store for each training run in `fused/`.

    Raises:
        FuserlError: data, models or settings cannot work; what was read before is kept.
    """
    given = plain(cfg)
    _check_numbers(given)
    job = _Job.of(cfg, given)
    inputs = {"data": job.side.content, "models": {one.name: one.identity() for one in job.models}}
    decisive = settings.decisive(given, FREE)
    if job.folder.finished(decisive, inputs):
        say(f"{job.folder.path} is finished already; nothing to do")
        return job.folder.path
    with locked(job.folder.path):
        readers = job.readers()
        texts = chosen_texts(job.side, readers[0], given)
        job.folder.begin(decisive, inputs)  # not before all of it is known to work
        write_text_atomically(job.folder.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(given)))
        say(f"align: {len(texts):,} texts, {len(readers)} models, writing {job.folder.path}")
        models, fused = _run(job, readers, texts)
        job.folder.finish(decisive, inputs, {"models": models, "fused": fused})
    for table in tables(models, fused):
        say_table(table)
    say(f"done: {job.folder.path}")
    return job.folder.path


@dataclass(frozen=True)
class _Job:
    given: Mapping[str, Any]
    parts: Parts
    cache: Path
    folder: FusedFolder
    side: Side
    models: Sequence[Model]  # the target first

    @classmethod
    def of(cls, cfg: DictConfig, given: Mapping[str, Any]) -> _Job:
        """Raises: FuserlError: a setting is wrong. No model is loaded yet."""
        parts, sources = Parts.of(cfg), sources_of(given["sources"], given["unsaid"])
        target = Model.of(TARGET, {**given["target"], "trust_remote_code": False}, {})
        models = [one.with_content() for one in (target, *sources)]
        folder = FusedFolder(given["output"] or Path("runs") / settings.digest("align", given, FREE))
        return cls(given, parts, _cache(given["cache"]), folder, sides_of(cfg.data)[0], models)

    def readers(self) -> list[Reader]:
        """Every model with the texts in its tokens, under the target's template."""
        target = self.given["target"]
        how = {"date_string": target["date_string"], "progress_bar": self.given["progress_bar"]}
        first = reader(self.models[0], self.side, self.cache, chat_template=target["chat_template"], **how)
        theirs = first.template.chat_template
        return [first, *(reader(one, self.side, self.cache, chat_template=theirs, **how) for one in self.models[1:])]

    def outputs(self) -> list[str]:
        """Names of the fused stores."""
        return [one.name for one in self.models[1:]] if self.given["pairwise"] else [TOGETHER]


def _run(job: _Job, readers: Sequence[Reader], texts: Texts) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Read, align, fuse; returns what is told of models and of fused stores."""
    show, k = job.given["progress_bar"], job.given["k"]
    read = [collected(one, texts, job.parts.collector, job.cache, k=k, progress_bar=show) for one in readers]
    sources = [_source(job, one, texts, found) for one, found in zip(readers[1:], read[1:], strict=True)]
    fusion = Fusion([one.name for one in job.models], read, sources, job.parts.blend, job.parts.criterion)
    with ExitStack() as stack:
        writers = {name: stack.enter_context(_writer(job, texts, fusion, name)) for name in job.outputs()}
        fusion.write(texts, writers, progress_bar=show)
    num_bytes = {texts.key_of[one.row, one.column]: len(one.text.encode()) for one in texts.places()}
    models = [read_by(one.name, found, num_bytes) for one, found in zip(job.models, read, strict=True)]
    return models, [fused_from(name, Distributions(job.folder.store(name))) for name in job.outputs()]


def _source(job: _Job, source: Reader, texts: Texts, read: Distributions) -> Carried | Same:
    """With its vocabulary map. All texts are aligned here, and kept."""
    target = texts.target
    if same_tokens(source, target, texts):
        return Same(read)
    aligned, together = Aligned(source, target, job.parts.aligner, texts, job.cache), Together(len(source.vocabulary))
    for pair, alignment in aligned.each(progress_bar=job.given["progress_bar"]):
        if job.parts.matching.reads_matches:
            together.add(alignment, pair.source.ids, pair.target.ids)
    maps = job.cache / "vocabularies"
    to_target = job.parts.matching.to_target(source.vocabulary, target.vocabulary, together.matches(), maps)
    return Carried(aligned, read, job.parts.matching, job.parts.collision, to_target)


def _writer(job: _Job, texts: Texts, fusion: Fusion, name: str) -> DistributionsWriter:
    target = texts.target
    made_from = {
        "tokenizer": target.template.tokenizer_digest,
        "template": target.template.hash,
        "texts": target.store.digest,
        "settings": settings.digest("align", job.given, FREE),
        "models": {one.name: one.identity() for one in job.models},
        "of": name,
    }
    k = job.given["k"] * job.parts.blend.num_mixed(len(fusion.members(name)))
    return DistributionsWriter(job.folder.store(name), k=k, vocabulary=len(target.vocabulary), made_from=made_from)


def _made(cfg: DictConfig, name: str) -> Any:
    try:
        return instantiate(cfg[name], _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, FuserlError):
            raise cause from error
        raise FuserlError(
            f"this cannot be made: {str(cause).splitlines()[0]}",
            where=f"`{name}`",
            hint="`fuserl align --help` lists the groups and their settings",
        ) from error


def _check_numbers(given: Mapping[str, Any]) -> None:
    k = given["k"]
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= 1000:
        raise FuserlError(f"`k` is {k!r}", where="`k`", hint="a whole number of tokens a position, from 1 to 1000")


def _cache(given: str) -> Path:
    path = Path(given).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FuserlError(
            f"the cache cannot be made: {error.strerror or error}",
            where=str(path),
            hint="give another one with `cache=DIR` or FUSERL_CACHE",
        ) from error
    return path
