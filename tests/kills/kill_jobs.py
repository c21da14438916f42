"""The jobs that are killed: one small command or more a verb, and which of their files are results."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from killing import Job

TESTS = Path(__file__).resolve().parents[1]
ROOMS = [TESTS.parent / "src", TESTS, *(TESTS / name for name in ("rewards", "distributions", "merging", "training"))]
sys.path += [str(room) for room in ROOMS if str(room) not in sys.path]

OWN = (  # of a run: what a clock or a machine says, where it lies, and what it did not have to do again
    "last_command", "seconds", "peak_memory_mb", "tokens_per_second", "data_seconds", "train_seconds", "reference_cache", "command", "time", "started",
    "finished", "pid", "output", "cache",
)  # fmt: skip
IN_TRAINING = ("fuserl.training.run", "transformers.models.llama")
ASIDE = (".lock", "config.yaml")  # files that hold a process's number, and paths
SMALL = (
    "data.limit=24", "data.validation_limit=8", "batch_size=8", "max_steps=16", "logger=csv", "optimizer.lr=1e-3", "probe.prompts=2",
    "probe.max_new_tokens=8", "trainer.accelerator=cpu", "checkpoint.every=1", "trainer.log_every=1", "trainer.val_every=4",
    "trainer.progress_bar=false", "trainer.max_tokens=200", "output=OUT", "cache=OUT.cache",
)  # fmt: skip


def told(path: Path) -> object:
    """JSON, without what is the run's own."""
    return _shared(json.loads(path.read_text()))


def _shared(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _shared(value) for name, value in content.items() if name not in OWN}
    return [_shared(value) for value in content] if isinstance(content, list) else content


def rows(path: Path) -> list[dict[str, str]]:
    """Of `metrics.csv`, without speeds."""
    with path.open() as file:
        return [{name: value for name, value in row.items() if "speed/" not in name} for row in csv.DictReader(file)]


def files(folder: Path, patterns: Sequence[str]) -> dict[str, object]:
    """Bytes by name, JSON without what is a run's own."""
    found = sorted(path for one in patterns for path in folder.glob(one) if path.is_file() and path.name not in ASIDE)
    return {
        str(path.relative_to(folder)): told(path) if path.suffix == ".json" else path.read_bytes() for path in found
    }


def run_left(folder: Path) -> dict[str, object]:
    """Of a training run."""
    return files(folder, ("model/*", "summary.json", "manifest.json", "samples.jsonl")) | {
        "metrics.csv": rows(folder / "metrics.csv")
    }


def sweep_left(folder: Path) -> dict[str, object]:
    """Of every job of a sweep, by its name, which its settings decide."""
    jobs = [path.parent for path in folder.glob("train-*/summary.json")]
    return {f"{job.name}/{name}": found for job in jobs for name, found in run_left(job).items()}


def prompts(folder: Path, number: int = 30) -> list[str]:
    """`generate` with an engine that computes its answers from the requests."""
    written = [{"prompt_id": f"p{n}", "prompt": f"What is {n}?"} for n in range(number)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
    engine = ["engine._target_=answering.AnsweringEngine", "+engine.together=4", "+engine.seconds=0.02"]
    sources = "sources={b:{path:models/b},a:{path:models/a}}"
    return [sources, "samples=3", f"data.path={folder / 'prompts.jsonl'}", *engine, "output=OUT"]


def answers(folder: Path, number: int = 60) -> list[str]:
    """`score` with a slow scorer."""
    from scoring_kit import groups

    from fuserl.records.store import write_groups

    write_groups(groups(number), folder / "data")
    scorer = ["+rewards.length._target_=scoring_kit.Length", "+rewards.length.seconds=0.005"]
    combine = ["combine=weighted", "combine.weights={length: 1.0}", "combine.standardise=domain"]
    return [f"data.path={folder / 'data'}", *scorer, *combine, "output=OUT"]


def texts(folder: Path, number: int = 12) -> list[str]:
    """`align` of two sources' models with the target's."""
    from align_kit import made, overrides, write_data

    groups = {f"What is {n} and {n}?": [f"It is {n + n}.", f"{n} and {n} are {n + n}"] for n in range(number)}
    data = write_data(folder / "data.jsonl", groups)
    more = ("collector.max_tokens=1", "blend=avg_ce", "cache=OUT.cache", "output=OUT")
    return overrides(made(folder.parent / "models_of_align"), data, folder, *more)


def experts(folder: Path) -> list[str]:
    """`merge` of three experts, a file a layer."""
    from merging_kit import family

    given = [*family(folder, "abc", num_hidden_layers=8, shard="40KB"), "merge=sce", "merge.unit=layer"]
    return [*given, "merge.select=0.3", "shard_gb=1.0e-5", "reload_gb=0", "output=OUT"]


def given(*settings: str) -> Callable[[Path], list[str]]:
    """`train` as SMALL says, with further settings: several packs a step and a checkpoint every step."""
    return lambda folder: [*SMALL, *settings]


def distilled(folder: Path) -> list[str]:
    """`train objective=distill` from a store of distributions."""
    import fused_stores as stores

    plain = ["objective.normalize=none"]
    data = stores.read(
        [*SMALL, *plain, "objective=sft_best", f"output={folder / 'none'}", f"cache={folder / 'tokens'}"]
    )
    store = stores.write(folder / "store", data, stores.noisy)
    mixed = ["divergence=jensen_shannon", "share=rising", "share.start=0.2", "objective.distillation.tail=bucket"]
    return [*SMALL, *plain, "objective=distill", f"objective.distillation.path={store}", *mixed]


def swept(*settings: str) -> Callable[[Path], list[str]]:
    """`train --multirun` over two seeds."""
    return given("--multirun", "max_steps=8", "probe.prompts=0", "objective=fusepo_dpo", "seed=0,1", *settings)


def _train(name: str, prepare: Callable[[Path], list[str]], share: int, **more: Any) -> Job:
    kept = "out/checkpoints/step-*.ckpt"
    return Job(name, "train", prepare, run_left, "summary.json", kept, share, imports=IN_TRAINING, **more)


def _sweep(name: str, prepare: Callable[[Path], list[str]], share: int, **more: Any) -> Job:
    imports = (*IN_TRAINING, "fuserl.sweeps.sweep")
    kept = "out/train-*/checkpoints/step-*.ckpt"
    return Job(
        name, "train", prepare, sweep_left, "train-*/summary.json", kept, share, results=2, imports=imports, **more
    )


TWO = ("objective=fusepo_dpo", "trainer.devices=2")
DATA_SET = partial(files, patterns=("*.parquet", "manifest.json"))
JOBS = (
    _train("train, fusepo_dpo", given("objective=fusepo_dpo", "checkpoint.asynchronous=true"), 6),
    _train("train, distill", distilled, 6),
    _train("train, loader processes", given("objective=fusesft", "trainer.num_workers=1"), 6, processes=True),
    _train("train, ddp of two ranks", given("trainer=ddp", *TWO), 5, processes=True),
    _train("train, fsdp2 of two ranks", given("trainer=fsdp2", *TWO), 5, processes=True),
    Job(
        "generate", "generate", prompts, DATA_SET, "manifest.json", "out/journal/*.jsonl", 16,
        imports=("fuserl.sources.generate", "pyarrow.parquet", "answering"),
    ),
    Job(
        "score", "score", answers, DATA_SET, "manifest.json", "out/journal/*.jsonl", 14,
        imports=("fuserl.rewards.score", "pyarrow.parquet", "scoring_kit"),
    ),
    Job(
        "align", "align", texts, partial(files, patterns=("fused/**/*", "summary.json", "manifest.json")),
        "manifest.json", "out.cache/distributions/*/*", 14,
        imports=("fuserl.distributions.align", "fuserl.distributions.collect_transformers", "transformers.models.llama",
                 "transformers.models.gpt_neox", "transformers.models.qwen2"),
    ),
    Job(
        "merge", "merge", experts, partial(files, patterns=("*",)), "*", "out.part/*.safetensors", 14,
        imports=("fuserl.merging.merge", "transformers.models.llama.modeling_llama"),
    ),
    _sweep("sweep in one process", swept("hydra/launcher=basic"), 7),
    _sweep("sweep, a process a job", swept("hydra.launcher.n_jobs=2", "hydra.launcher.threads=1"), 7, processes=True),
)  # fmt: skip
