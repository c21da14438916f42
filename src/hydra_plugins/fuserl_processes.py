"""`hydra/launcher=processes` for Hydra, which finds launchers in this namespace alone; the work is in `fuserl.sweeps`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class ProcessesLauncher(Launcher):
    """One process a job on this machine; see `fuserl.sweeps.processes.run_all`."""

    def __init__(self, n_jobs: int | str, threads: int | str) -> None:
        self.n_jobs, self.threads = n_jobs, threads
        self.config: DictConfig | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep the settings; the jobs compose their own."""
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the batch."""
        from fuserl.sweeps.job import outcome
        from fuserl.sweeps.processes import run_all

        assert self.config is not None
        verb = self.config.hydra.job.config_name
        folders = run_all(verb, job_overrides, n_jobs=self.n_jobs, threads=self.threads)
        return [
            _returned(list(overrides), outcome(folder, self.config.metric))
            for overrides, folder in zip(job_overrides, folders, strict=True)
        ]


def _returned(overrides: list[str], value: Any) -> JobReturn:
    done = JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
    done.return_value = value
    return done
