"""What to change where a run would not fit: one change after the other, each reckoned, the least costly first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from omegaconf import DictConfig, OmegaConf

from fuserl.settings import compose, config_folder
from fuserl.tokens.collate import PADDING
from fuserl.tokens.plan import make_plan
from fuserl.training.hardware import Hardware
from fuserl.training.memory import Memory, Model, memory_of
from fuserl.training.prepare import Prepared
from fuserl.training.strategies import cuts_up

ADAPTERS = "{r: 16, target_modules: all-linear}"


@dataclass(frozen=True)
class Way:
    """One change, on top of those before it."""

    override: str  # as given to `fuserl train`
    why: str
    peak: int  # bytes of one device with it
    fits: bool


def recompute(cfg: DictConfig, prepared: Prepared) -> Iterator[tuple[str, str]]:
    """Activation checkpointing."""
    if cfg.target.checkpointing != "full":
        yield "target.checkpointing=full", "activations are computed again in backward: about a third more time"


def smaller_packs(cfg: DictConfig, prepared: Prepared) -> Iterator[tuple[str, str]]:
    """Halves, down to the largest group."""
    costs = [split.plan.costs.tokens.max() for split in (prepared.train, prepared.validation) if split]
    least = -(-int(max(costs)) // PADDING) * PADDING
    size = prepared.train.plan.max_tokens
    while size > least:
        size = max(least, size // 2)
        yield f"trainer.max_tokens={size}", "smaller packs: the same loss, a little less speed"


def fewer_logits(cfg: DictConfig, prepared: Prepared) -> Iterator[tuple[str, str]]:
    """Slices of the head."""
    if cfg.trainer.logits_memory == "auto" or cfg.trainer.logits_memory > 0.25:
        yield "trainer.logits_memory=0.25", "fewer logits at a time: what needs more goes through the head twice"


def half_gathered(cfg: DictConfig, prepared: Prepared) -> Iterator[tuple[str, str]]:
    """What is whole under `fsdp2`, in half precision."""
    if cuts_up(cfg) and cfg.target.dtype == "float32" and not cfg.trainer.strategy.gather:
        yield "trainer.strategy.gather=bfloat16", "what is gathered takes half; norms and sums of layers are rounded"


def half_weights(cfg: DictConfig, prepared: Prepared) -> Iterator[tuple[str, str]]:
    """bf16 throughout."""
    if cfg.target.dtype in ("auto", "float32") and cfg.trainer.precision == "32-true":
        yield "target.dtype=bfloat16", "half of everything, but updates smaller than bf16's rounding are lost"


def adapters(cfg: DictConfig, prepared: Prepared) -> Iterator[tuple[str, str]]:
    """LoRA."""
    if not cfg.target.lora:
        yield f"'target.lora={ADAPTERS}'", "LoRA: only adapters have gradients and optimiser states"


Propose = Callable[[DictConfig, Prepared], Iterator[tuple[str, str]]]
WAYS: tuple[Propose, ...] = (
    recompute, smaller_packs, fewer_logits, half_gathered, half_weights, adapters,
)  # fmt: skip


def ways_out(cfg: DictConfig, prepared: Prepared, hardware: Hardware, peak: int) -> list[Way]:
    """Changes in order, until the run fits; then the devices on which it fits as it is.

    Args:
        peak: bytes of one device as it is.
    """
    taken, now, least = over_devices(cfg, prepared, hardware, peak)
    if least <= hardware.memory:
        return taken
    for propose in WAYS:
        for way, changed in _best(propose, now, least, prepared, hardware):
            taken, now, least = [*taken, way], changed, way.peak
        if least <= hardware.memory:
            break
    return [*taken, *larger_devices(cfg, prepared, hardware)]


def over_devices(
    cfg: DictConfig, prepared: Prepared, hardware: Hardware, peak: int
) -> tuple[list[Way], DictConfig, int]:
    """FSDP2, where there are devices to share; with the settings and the bytes from there on."""
    if prepared.train.plan.ranks == 1 or cuts_up(cfg):
        return [], cfg, peak
    changed = cfg.copy()
    changed.trainer.strategy = compose("train", ["trainer=fsdp2"]).trainer.strategy
    least = reckon(changed, prepared, hardware).peak
    if least >= peak:
        return [], cfg, peak
    why = "weights, gradients and moments cut up over the devices: more traffic, the same result"
    return [Way("trainer=fsdp2", why, least, least <= hardware.memory)], changed, least


def _best(
    propose: Propose, cfg: DictConfig, least: int, prepared: Prepared, hardware: Hardware
) -> list[tuple[Way, DictConfig]]:
    """The first proposal with which the run fits, else the one that takes least; nothing if none takes less than now."""
    best: list[tuple[Way, DictConfig]] = []
    for override, why in propose(cfg, prepared):
        changed = OmegaConf.merge(cfg, OmegaConf.from_dotlist([override.strip("'")]))
        assert isinstance(changed, DictConfig)
        peak = reckon(changed, prepared, hardware).peak
        if peak >= least:
            continue
        least, best = peak, [(Way(override, why, peak, peak <= hardware.memory), changed)]
        if peak <= hardware.memory:
            break
    return best


def larger_devices(cfg: DictConfig, prepared: Prepared, hardware: Hardware) -> list[Way]:
    """As it is, on devices with more memory."""
    found = []
    for path in sorted((config_folder() / "hardware").glob("*.yaml")):
        other = Hardware.of(compose("plan", [f"hardware={path.stem}", "data=miniature"]).hardware)
        if other.accelerator == "cpu" or other.memory <= hardware.memory:
            continue
        peak = reckon(cfg, prepared, other).peak
        if peak <= other.memory:
            found.append(Way(f"hardware={path.stem}", f"as it is, on {other.name}", peak, True))
    return found


def reckon(cfg: DictConfig, prepared: Prepared, hardware: Hardware) -> Memory:
    """Memory with other settings; packs are cut anew where their size has changed."""
    if cfg.trainer.max_tokens != "auto" and int(cfg.trainer.max_tokens) != prepared.train.plan.max_tokens:
        plan = prepared.train.plan
        again = make_plan(
            plan.costs, batch_size=plan.batch_size, max_tokens=int(cfg.trainer.max_tokens), ranks=plan.ranks,
            seed=plan.seed, epochs=1, max_steps=plan.steps, shuffle=plan.shuffle,
        )  # fmt: skip
        prepared = replace(prepared, train=replace(prepared.train, plan=again))
        if (held_out := prepared.validation) is not None:
            once = make_plan(
                held_out.plan.costs, batch_size=held_out.plan.batch_size, max_tokens=int(cfg.trainer.max_tokens),
                ranks=held_out.plan.ranks, seed=held_out.plan.seed, epochs=1, shuffle=held_out.plan.shuffle,
            )  # fmt: skip
            prepared = replace(prepared, validation=replace(held_out, plan=once))
    return memory_of(cfg, Model(cfg, cfg.target.checkpointing), prepared, hardware)
