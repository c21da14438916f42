"""Callbacks that show how a run goes: speed, and answers sampled on fixed prompts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from fuserl.models.generate import sample
from fuserl.models.sharding import first_ones, is_sharded, whole
from fuserl.training.group_module import GroupModule


class Throughput(Callback):
    """Tokens a second (those the device really saw) and MFU, in the progress bar and the metrics.

    Args:
        flops_of_step: useful ones, of all ranks.
        peak: FLOP/s of one device; None leaves MFU out.
    """

    def __init__(
        self,
        tokens_of_step: Callable[[int], int],
        flops_of_step: Callable[[int], int],
        peak: float | None,
        log_every: int,
    ) -> None:
        self.tokens_of_step, self.flops_of_step, self.peak = tokens_of_step, flops_of_step, peak
        self.log_every = log_every
        self.tokens, self.flops, self.steps = 0, 0, 0  # since the last row
        self.seconds = 0.0  # of training only: validation and checkpoints do not count
        self.total_tokens, self.total_seconds = 0, 0.0

    def on_train_batch_start(self, trainer: L.Trainer, module: GroupModule, batch: Any, batch_index: int) -> None:
        """Start the clock of one pack."""
        self._started, self._step = time.perf_counter(), trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, module: GroupModule, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        """Stop it; after a whole optimiser step, count its tokens. A GPU's queue is waited for once a row."""
        step_done = trainer.global_step != self._step
        a_row = step_done and (trainer.global_step % self.log_every == 0 or trainer.global_step == trainer.max_steps)
        if a_row and module.device.type == "cuda":
            torch.cuda.synchronize(module.device)
        self.seconds += time.perf_counter() - self._started
        if step_done:
            self.tokens, self.steps = self.tokens + self.tokens_of_step(self._step), self.steps + 1
            self.flops += self.flops_of_step(self._step)
        if a_row:
            module.publish_training()
            self._publish(trainer, module)

    def on_validation_start(self, trainer: L.Trainer, module: GroupModule) -> None:
        """What a GPU still computes of training belongs to training."""
        if module.device.type == "cuda" and trainer.training:
            started = time.perf_counter()
            torch.cuda.synchronize(module.device)
            self.seconds += time.perf_counter() - started

    def _publish(self, trainer: L.Trainer, module: GroupModule) -> None:
        rate = self.tokens / max(self.seconds, 1e-9)
        metrics = {
            "speed/tokens_per_second": rate,
            "speed/seconds_per_step": self.seconds / self.steps,
            "train/lr": trainer.optimizers[0].param_groups[0]["lr"],
        }
        if (norm := module.latest.get("train/grad_norm")) is not None:
            metrics["train/grad_norm"] = norm
        if self.peak is not None:
            metrics["speed/mfu"] = self.flops / max(self.seconds, 1e-9) / (self.peak * trainer.world_size)
        module.publish(metrics)
        module.log("tok/s", rate, prog_bar=True, logger=False)
        module.log("loss", module.latest.get("train/loss", float("nan")), prog_bar=True, logger=False)
        self.total_tokens, self.total_seconds = self.total_tokens + self.tokens, self.total_seconds + self.seconds
        self.tokens, self.flops, self.steps, self.seconds = 0, 0, 0, 0.0

    def state_dict(self) -> dict[str, float]:
        """Totals go on after a resume."""
        return {"total_tokens": self.total_tokens, "total_seconds": self.total_seconds}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """After a resume."""
        self.total_tokens, self.total_seconds = int(state_dict["total_tokens"]), state_dict["total_seconds"]


@dataclass(frozen=True)
class Probe:
    """A fixed prompt of the probe set."""

    id: str
    text: str  # what a scorer is given
    tokens: list[int]
    reference: str | None


class SampleProbe(Callback):
    """Samples answers to the same prompts at every validation: `samples.jsonl`, length, unfinished share, score.

    Args:
        score: `score(prompt, answer, reference) -> float`; None leaves the score out.
    """

    def __init__(
        self,
        probes: Sequence[Probe],
        *,
        decode: Callable[[list[int]], str],
        stop_ids: set[int],
        path: Path,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        score: Callable[[str, str, str | None], float] | None,
    ) -> None:
        self.probes, self.decode, self.stop_ids, self.path = probes, decode, stop_ids, path
        self.max_new_tokens, self.temperature, self.seed, self.score = max_new_tokens, temperature, seed, score

    def on_validation_epoch_end(self, trainer: L.Trainer, module: GroupModule) -> None:
        """Sample on rank 0, or on all together; the first one's text goes to the file, the numbers to the metrics."""
        together = is_sharded(module.policy)
        if trainer.sanity_checking or not self.probes or not (trainer.is_global_zero or together):
            return
        sampling = partial(
            sample,
            module.policy,
            [probe.tokens for probe in self.probes],
            n=1,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            stop_ids=self.stop_ids,
            seed=self.seed,
            agree=first_ones if together else None,
        )
        with torch.no_grad():
            answers = whole(module.policy, sampling)
        if trainer.is_global_zero:
            self._publish(trainer, module, answers)

    def _publish(self, trainer: L.Trainer, module: GroupModule, answers: list[list[list[int]]]) -> None:
        rows = [
            self._row(trainer.global_step, probe, answer[0]) for probe, answer in zip(self.probes, answers, strict=True)
        ]
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        metrics = {name: _mean([row[name] for row in rows]) for name in ("tokens", "unfinished", "score")}
        module.publish({f"probe/{name}": value for name, value in metrics.items() if value is not None})

    def _row(self, step: int, probe: Probe, tokens: list[int]) -> dict[str, Any]:
        finished = bool(tokens) and tokens[-1] in self.stop_ids
        text = self.decode(tokens[:-1] if finished else tokens)
        score = self.score(probe.text, text, probe.reference) if self.score else None
        row = {"step": step, "prompt_id": probe.id, "prompt": probe.text, "answer": text}
        return row | {"tokens": len(tokens), "unfinished": float(not finished), "score": score}


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
