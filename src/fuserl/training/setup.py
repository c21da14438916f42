"""All that exists before the first step: tokens, objective, plan, policy, reference log-probs."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from fuserl.errors import FuserlError
from fuserl.models.attention import choose
from fuserl.models.compiled import compile_layers
from fuserl.models.load import check_vocabulary, load_policy, load_tokenizer
from fuserl.models.reference import fill, weights_digest
from fuserl.models.reference_cache import ReferenceCache
from fuserl.models.scoring import Packed, Padded, Scoring, check_model, rows_within
from fuserl.tokens.collate import PADDING, GroupBatch
from fuserl.tokens.templates import Template, load_template
from fuserl.training.datamodule import Split
from fuserl.training.group_module import Report
from fuserl.training.prepare import Prepared, prepare, reported_pairs, scores_of
from fuserl.training.summary import say

PACK_LENGTHS = 8  # on a GPU


def device_of(accelerator: str) -> torch.device:
    """The first device of Lightning's accelerator name.

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
    return torch.device("cuda" if cuda and accelerator != "cpu" else "cpu")


def _logits_memory(setting: str | float, device: torch.device) -> float:
    """GiB that logits may take; `auto` is half a GiB on a processor, a sixteenth of a GPU's memory."""
    if setting != "auto":
        return float(setting)
    return torch.cuda.get_device_properties(device).total_memory / 2**34 if device.type == "cuda" else 0.5


class Setup:
    """Tokens, objective, plan, policy and reference: all that exists before the first step."""

    def __init__(self, cfg: DictConfig) -> None:
        if cfg.trainer.precision in ("bf16-true", "16-true", "transformer-engine"):
            raise FuserlError(
                f"precision {cfg.trainer.precision} would round rewards and reference log-probs too",
                where="`trainer.precision`",
                hint="use `target.dtype=bfloat16` with `trainer.precision=32-true`, or bf16-mixed",
            )
        L.seed_everything(cfg.seed, verbose=False)
        self.cfg, self.cache = cfg, Path(cfg.cache).expanduser()
        self.tokenizer = load_tokenizer(cfg.target.path, revision=cfg.target.revision)
        check_vocabulary(cfg.target.path, self.tokenizer)
        self.template: Template = load_template(
            self.tokenizer, chat_template=cfg.target.chat_template, date_string=cfg.target.date_string
        )
        started = time.perf_counter()
        self.prepared: Prepared = prepare(cfg, self.template, self.cache, ranks=cfg.trainer.devices)
        self.data_seconds = round(time.perf_counter() - started, 3)
        self.device = device_of(cfg.trainer.accelerator)
        self.backend = choose(cfg.trainer.attention, self.device)
        dtype = "float64" if cfg.trainer.precision == "64-true" else cfg.target.dtype
        self.policy = load_policy(
            cfg.target.path,
            revision=cfg.target.revision,
            dtype=dtype,
            lora=OmegaConf.to_container(cfg.target.lora) if cfg.target.lora else None,
            checkpointing=cfg.target.checkpointing,
        ).to(self.device)
        if cfg.trainer.compile:
            compile_layers(self.policy)
        if cfg.trainer.packing == "shared":
            check_model(self.policy, self.backend)
            rows = rows_within(_logits_memory(cfg.trainer.logits_memory, self.device), self.policy)
            self.scoring: Scoring = Packed(self.backend, rows, self.prepared.objective.linear)
        else:
            self.scoring = Padded()
        self._round_packs_up()
        self.reference_stats: dict[str, Any] = {"hits": 0, "misses": 0, "seconds": 0.0}
        if self.prepared.objective.uses_reference:
            self._fill_reference(dtype)

    def _round_packs_up(self) -> None:
        """To a few lengths on a GPU, whose kernels are chosen and memory is cut by length."""
        if self.device.type == "cuda" and self.cfg.trainer.packing == "shared":
            multiple = -(-self.prepared.train.plan.max_tokens // (PACK_LENGTHS * PADDING)) * PADDING
            self.prepared.train = replace(self.prepared.train, multiple=multiple)

    def _fill_reference(self, dtype: str) -> None:
        path = self.cfg.reference.path
        model = load_policy(path, dtype=dtype, lora=None, checkpointing=False).to(self.device) if path else self.policy
        cache = ReferenceCache(
            self.cache / "reference",
            weights=weights_digest(model),
            dtype=f"{next(model.parameters()).dtype}, {self.cfg.trainer.precision}",
            backend=self.backend if self.cfg.trainer.packing == "shared" else "padded",
        )
        started = time.perf_counter()
        prepared = self.prepared
        prepared.train = self._with_reference(prepared.train, model, cache)
        if prepared.validation:
            prepared.validation = self._with_reference(prepared.validation, model, cache)
        seconds = time.perf_counter() - started
        self.reference_stats = {"hits": cache.hits, "misses": cache.misses, "seconds": round(seconds, 3)}
        say(f"reference log-probs: {cache.hits} from the cache, {cache.misses} computed in {seconds:.1f} s")

    def _with_reference(self, split: Split, model: Any, cache: ReferenceCache) -> Split:
        planned = np.zeros(len(split.used), dtype=bool)
        planned[list(split.plan.rows)] = True
        used = split.used & planned[:, None]
        filled = fill(
            model, split.store, used, cache, max_tokens=16384, backend=self.backend, truncate=split.truncate,
            score=self._score_as_trained,
        )  # fmt: skip
        return replace(split, reference=filled)

    def _score_as_trained(self, model: Any, batch: GroupBatch) -> torch.Tensor:
        """In the precision of training, so that policy and reference agree before the first step."""
        mixed = self.cfg.trainer.precision.endswith("-mixed")
        half = torch.bfloat16 if "bf16" in self.cfg.trainer.precision else torch.float16
        with torch.autocast(self.device.type, dtype=half, enabled=mixed, cache_enabled=False):
            return self.scoring.score(model, batch)

    def report(self) -> Report:
        """What the module measures."""
        slices = self.prepared.slices

        def domains(split: Split | None) -> torch.Tensor:
            names = split.store.domains if split else []
            return torch.tensor([slices.domains.index(str(name)) for name in names], dtype=torch.long)

        compared = self.prepared.validation or self.prepared.train
        pairs = reported_pairs(self.prepared.objective, scores_of(compared.store))
        return Report(slices, domains(self.prepared.train), domains(self.prepared.validation), pairs)
