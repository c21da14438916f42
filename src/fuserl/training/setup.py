"""All that exists before the first step: tokens, objective, plan, policy, reference log-probs."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch.distributed.device_mesh import DeviceMesh

from fuserl.errors import FuserlError
from fuserl.models.compiled import compile_layers
from fuserl.models.cut_loading import load_cut_up
from fuserl.models.kernels import checked_backend
from fuserl.models.load import check_vocabulary, load_policy, load_tokenizer
from fuserl.models.reference import fill, weights_digest
from fuserl.models.reference_cache import ReferenceCache
from fuserl.models.reference_folder import require_writable
from fuserl.models.reference_together import fill_together
from fuserl.models.scoring import Packed, Padded, Scoring, per_token, rows_within
from fuserl.models.sharding import is_sharded, trained_weights, whole
from fuserl.terminal import say
from fuserl.tokens.collate import PADDING, GroupBatch
from fuserl.tokens.scores import scores_of
from fuserl.tokens.templates import Template, load_template
from fuserl.training import ranges
from fuserl.training.datamodule import Split
from fuserl.training.export import export_model
from fuserl.training.export_pieces import export_in_pieces, goes_in_pieces
from fuserl.training.group_module import Report
from fuserl.training.prepare import Prepared, prepare, reported_pairs
from fuserl.training.space import require_space
from fuserl.training.strategies import Place, cuts_up, gathered_in, joined

PACK_LENGTHS = 8  # on a GPU
PACK_TOKENS = {"cuda": 16384, "cpu": 4096}  # what `trainer.max_tokens=auto` says; larger packs gain no speed there


def device_of(accelerator: str) -> torch.device:
    """This process's device of Lightning's accelerator name.

    Raises:
        FuserlError: a GPU is asked for and there is none.
    """
    cuda = torch.cuda.is_available()
    if accelerator in ("gpu", "cuda") and not cuda:
        raise FuserlError(
            "no GPU is visible",
            where="`trainer.accelerator`",
            hint="use `trainer.accelerator=cpu`, or see `fuserl doctor`",
        )
    return (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        if cuda and accelerator != "cpu"
        else torch.device("cpu")
    )


def logits_gib(setting: str | float, gpu_bytes: float | None) -> float:
    """GiB that logits may take; `auto` is half a GiB on a processor, a sixteenth of a GPU's memory."""
    if setting != "auto":
        return float(setting)
    return 0.5 if gpu_bytes is None else gpu_bytes / 2**30 / 16


def rounded_up(split: Split) -> Split:
    """Packs of a few lengths, for GPUs: kernels are chosen and memory is cut by length."""
    return replace(split, multiple=-(-split.plan.max_tokens // (PACK_LENGTHS * PADDING)) * PADDING)


def dtype_of(cfg: DictConfig) -> str:
    """The weights', by name."""
    return "float64" if cfg.trainer.precision == "64-true" else cfg.target.dtype


def data_of(cfg: DictConfig, device: str | None = None) -> tuple[Any, Template, Prepared]:
    """Tokenizer, template, and the data as the run reads it: all that needs no weights.

    Args:
        device: `cuda` or `cpu`, whose packs are planned; this machine's where None.

    Raises:
        FuserlError: data or settings cannot work.
    """
    ranges.require(cfg)
    if cfg.trainer.precision in ("bf16-true", "16-true", "transformer-engine"):
        raise FuserlError(
            f"precision {cfg.trainer.precision} would round rewards and reference log-probs too",
            where="`trainer.precision`",
            hint="use `target.dtype=bfloat16` with `trainer.precision=32-true`, or bf16-mixed",
        )
    tokenizer = load_tokenizer(cfg.target.path, revision=cfg.target.revision)
    check_vocabulary(cfg.target.path, tokenizer)
    template = load_template(tokenizer, chat_template=cfg.target.chat_template, date_string=cfg.target.date_string)
    tokens = PACK_TOKENS[device or device_of(cfg.trainer.accelerator).type]
    cache = Path(cfg.cache).expanduser()
    return tokenizer, template, prepare(cfg, template, cache, ranks=Place.of(cfg).ranks, pack_tokens=tokens)


def _backend(scoring: Scoring) -> str:
    """The attention kernel, or `padded`."""
    return scoring.backend if isinstance(scoring, Packed) else "padded"


class Setup:
    """Tokens, objective, plan, policy and reference: all that exists before the first step."""

    def __init__(self, cfg: DictConfig) -> None:
        L.seed_everything(cfg.seed, verbose=False)
        self.cfg, self.cache = cfg, Path(cfg.cache).expanduser()
        started = time.perf_counter()
        self.prepared: Prepared
        self.template: Template
        self.tokenizer, self.template, self.prepared = data_of(cfg)
        for caution in self.prepared.cautions:
            say(caution)
        self.data_seconds = round(time.perf_counter() - started, 3)
        self.device = device_of(cfg.trainer.accelerator)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.prepared.objective.uses_reference:
            require_writable(self.cache / "reference")
        self.mesh = joined(self.device, Place.of(cfg).patience) if cuts_up(cfg) else None
        self.in_pieces = self.mesh is not None
        self.policy = self._loaded(self.mesh)
        require_space(cfg, self.policy)
        if cfg.trainer.compile:
            compile_layers(self.policy)
        self.scoring = self._scoring_of(self.policy)
        if self.device.type == "cuda" and cfg.trainer.packing == "shared":
            self.prepared.train = rounded_up(self.prepared.train)
        self.reference_stats: dict[str, Any] = {"hits": 0, "misses": 0, "seconds": 0.0}
        if self.prepared.objective.uses_reference:
            self._fill_reference()

    def _loaded(self, mesh: DeviceMesh | None) -> Any:
        """The policy that training starts from, on the device; in pieces where there is a mesh."""
        target = self.cfg.target
        lora = OmegaConf.to_container(target.lora) if target.lora else None
        more = {"revision": target.revision, "lora": lora, "checkpointing": target.checkpointing}
        return self._model(target.path, mesh, **more)

    def _model(self, path: str | Path, mesh: DeviceMesh | None, **more: Any) -> Any:
        more |= {"dtype": dtype_of(self.cfg), "packing": self.cfg.trainer.packing}
        if mesh is None:
            return load_policy(str(path), **more).to(self.device)
        return load_cut_up(str(path), mesh, device=self.device, gather=gathered_in(self.cfg), **more)

    def export(self, folder: Path, *, card: str, first: bool) -> None:
        """Write `model/`; a policy in pieces is put together weight by weight, where it can be.

        Args:
            first: whether this is the process that writes. All must call.
        """
        self.in_pieces = self.mesh is not None and goes_in_pieces(self.policy)
        if self.in_pieces:
            load = partial(self._model, mesh=self.mesh)
            export_in_pieces(self.policy, self.tokenizer, folder, card=card, first=first, load=load)
            return
        if is_sharded(self.policy):
            weights = trained_weights(self.policy, keep=first)
            if first:
                self.policy = self._loaded(None)
                self.policy.load_state_dict(weights, strict=False)
        if first:
            export_model(self.policy, self.tokenizer, folder, card=card)

    @property
    def backend(self) -> str:
        """The attention kernel of the policy, or `padded`."""
        return _backend(self.scoring)

    def _scoring_of(self, model: Any) -> Scoring:
        """The way to run a model, checked in the precision of training."""
        if self.cfg.trainer.packing == "padded":
            return Padded()
        with self._as_trained():
            backend = whole(model, lambda: checked_backend(model, self.cfg.trainer.attention))
        gpu = torch.cuda.get_device_properties(self.device).total_memory if self.device.type == "cuda" else None
        rows = rows_within(logits_gib(self.cfg.trainer.logits_memory, gpu), model)
        return Packed(backend, rows, self.prepared.objective.linear)

    def _fill_reference(self) -> None:
        model, scoring, path = self.policy, self.scoring, self.cfg.reference.path
        if path:
            check_vocabulary(path, self.tokenizer)
            model = self._model(path, self.mesh)
            scoring = self._scoring_of(model)
        cache = ReferenceCache(
            self.cache / "reference",
            weights=weights_digest(model),
            dtype=f"{next(model.parameters()).dtype}, {self.cfg.trainer.precision}{self._rounded()}",
            backend=_backend(scoring),
            model=str(path or self.cfg.target.path),
        )
        started = time.perf_counter()
        prepared = self.prepared
        prepared.train = self._with_reference(prepared.train, model, scoring, cache)
        if prepared.validation:
            prepared.validation = self._with_reference(prepared.validation, model, scoring, cache)
        cache.close()
        seconds = time.perf_counter() - started
        self.reference_stats = {"hits": cache.hits, "misses": cache.misses, "seconds": round(seconds, 3)}
        say(f"reference log-probs: {cache.hits} from the cache, {cache.misses} computed in {seconds:.1f} s")

    def _rounded(self) -> str:
        """What weights in pieces are rounded to while they compute, where they are."""
        gather = gathered_in(self.cfg) if self.mesh else None
        return f", gathered in {gather}" if gather else ""

    def _with_reference(self, split: Split, model: Any, scoring: Scoring, cache: ReferenceCache) -> Split:
        planned = np.zeros(len(split.used), dtype=bool)
        planned[list(split.plan.rows)] = True
        filled = (fill_together if self.mesh else fill)(
            model,
            split.store,
            split.used & planned[:, None],
            cache,
            max_tokens=split.plan.max_tokens,
            truncate=split.truncate,
            score=partial(self._score_as_trained, scoring),
            per_token=partial(self._tokens_as_trained, scoring) if self.cfg.reference.per_token else None,
            waiting=lambda count: say(f"waiting for {count} reference log-probs that other processes compute"),
        )
        return replace(split, reference=filled)

    def _as_trained(self) -> torch.autocast:
        """The precision of training, so that policy and reference agree before the first step."""
        mixed = self.cfg.trainer.precision.endswith("-mixed")
        half = torch.bfloat16 if "bf16" in self.cfg.trainer.precision else torch.float16
        return torch.autocast(self.device.type, dtype=half, enabled=mixed, cache_enabled=False)

    def _score_as_trained(self, scoring: Scoring, model: Any, batch: GroupBatch) -> torch.Tensor:
        with self._as_trained():
            return whole(model, lambda: scoring.score(model, batch))

    def _tokens_as_trained(self, scoring: Scoring, model: Any, batch: GroupBatch) -> torch.Tensor:
        if not isinstance(scoring, Packed):
            raise FuserlError(
                "log-probs a token are kept of packs only",
                where="`reference.per_token`",
                hint="use `trainer.packing=shared`",
            )
        with self._as_trained():
            return whole(model, lambda: per_token(model, batch, backend=scoring.backend, rows=scoring.rows))

    def report(self) -> Report:
        """What the module measures."""
        slices = self.prepared.slices

        def domains(split: Split | None) -> torch.Tensor:
            """[N] each prompt's place in the slices' domains."""
            if split is None:
                return torch.zeros(0, dtype=torch.long)
            place = np.array([slices.domains.index(name) for name in split.store.domain_names])
            return torch.from_numpy(place[np.asarray(split.store.domain)])

        compared = self.prepared.validation or self.prepared.train
        pairs = reported_pairs(self.prepared.objective, scores_of(compared.store))
        return Report(slices, domains(self.prepared.train), domains(self.prepared.validation), pairs)
