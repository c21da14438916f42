"""The LightningDataModule: packs of the plan, in order, from any step on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from fuserl.errors import FuserlError
from fuserl.tokens.collate import GroupBatch, Support, collate
from fuserl.tokens.plan import Plan
from fuserl.tokens.store import TokenStore


@dataclass(frozen=True)
class Split:
    """One tokenised split and what a run reads of it."""

    store: TokenStore
    used: np.ndarray  # [N, K] bool: responses whose log-probs are needed
    count: np.ndarray  # [N] each prompt's share of the denominator
    plan: Plan
    reference: np.ndarray | None = None  # [N, K] summed reference log-probs, nats
    units: np.ndarray | None = None  # [N, K] which responses' slopes depend on each other's log-probs
    truncate: int | None = None  # tokens of prompt and response, where responses are cut
    multiple: int = 1  # packs are padded up to a multiple of so many tokens
    support: Callable[[int, int], Support] | None = None  # what is expected at a response's tokens, by row and column

    def pack(self, step: int, position: int, rank: int) -> GroupBatch:
        """Pack number `position` of an optimiser step, as `rank` sees it."""
        planned = self.plan.step(step)
        groups = planned.packs[rank][position].groups
        count = float(self.count[list(planned.prompts)].sum())
        return collate(
            self.store,
            groups or (min(planned.prompts, key=lambda row: self.cost(row)),),
            self.used if groups else np.zeros_like(self.used),
            reference=self.reference,
            units=self.units,
            count_in_step=count if count > 0 else 1.0,
            progress=step / max(1, self.plan.steps),
            truncate=self.truncate,
            multiple=self.multiple,
            support=self.support,
        )

    def cost(self, row: int) -> int:
        """Tokens of the group with everything it has."""
        return int(self.store.prompt_tokens[row] + self.store.branch_tokens[row].sum())


class _Packs(Dataset):
    """All packs of one rank; number j is pack j % A of step j // A."""

    def __init__(self, split: Split, rank: int) -> None:
        self.split, self.rank = split, rank

    def __len__(self) -> int:
        return self.split.plan.steps * self.split.plan.packs_per_step

    def __getitem__(self, number: int) -> GroupBatch | FuserlError:
        """What goes wrong is handed on like a pack: torch would make a traceback of a loader process's error."""
        step, position = divmod(number, self.split.plan.packs_per_step)
        try:
            return self.split.pack(step, position, self.rank)
        except Exception as error:
            rows = self.split.plan.step(step).packs[self.rank][position].groups
            return _of_pack(error, step, [str(self.split.store.ids[row]) for row in rows])


class _From(Sampler[int]):
    """Counts up from `start`; its length stays the whole run's, because Lightning counts finished packs itself."""

    def __init__(self, packs: Sized, start: int) -> None:
        self.packs, self.start = packs, start

    def __len__(self) -> int:
        return len(self.packs)

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, len(self.packs)))


def _of_pack(error: Exception, step: int, names: Sequence[str]) -> FuserlError:
    groups = f"step {step}, groups {', '.join(names)}"
    if isinstance(error, FuserlError):
        return FuserlError(error.what, where=f"{error.where}; {groups}" if error.where else groups, hint=error.hint)
    return FuserlError(
        f"a pack cannot be built ({type(error).__name__}: {error})",
        where=groups,
        hint="look at these groups in the data set; the tokens are made again where the cache's folder is deleted",
    )


def _as_it_is(batch: GroupBatch | FuserlError) -> GroupBatch | FuserlError:
    return batch


class GroupDataModule(L.LightningDataModule):
    """Training and validation packs. The whole run is one Lightning epoch: the plan knows the epochs.

    Args:
        start_step: optimiser steps that an earlier process has done (exact resume).
        num_workers: loader processes; packs are built while the device computes.
    """

    def __init__(self, train: Split, validation: Split | None, *, start_step: int, num_workers: int) -> None:
        super().__init__()
        self.train, self.validation = train, validation
        self.start_step, self.num_workers = start_step, num_workers

    def train_dataloader(self) -> DataLoader:
        """From the first pack of `start_step` to the end of the run."""
        packs = _Packs(self.train, self._rank)
        return self._loader(packs, _From(packs, self.start_step * self.train.plan.packs_per_step))

    def val_dataloader(self) -> DataLoader | list:
        """The validation split, once, in order."""
        return self._loader(_Packs(self.validation, self._rank), None) if self.validation else []

    def on_before_batch_transfer(self, batch: GroupBatch | FuserlError, dataloader_idx: int) -> GroupBatch:
        """A pack, when its turn has come.

        Raises:
            FuserlError: it could not be built.
        """
        if isinstance(batch, FuserlError):
            raise batch
        return batch

    def pack(self, step: int, position: int, rank: int) -> GroupBatch:
        """One training pack."""
        return self.train.pack(step, position, rank)

    def names_of_step(self, step: int) -> list[str]:
        """Prompt ids of one optimiser step."""
        return [str(self.train.store.ids[row]) for row in self.train.plan.step(step).prompts]

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    def _loader(self, packs: Dataset, sampler: Any) -> DataLoader:
        return DataLoader(
            packs,
            batch_size=None,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=_as_it_is,
            persistent_workers=self.num_workers > 0,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
        )
