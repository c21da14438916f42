"""What the configuration of `select` asks for, made objects and checked before anything is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fuserl.curation.gather import Input
from fuserl.curation.keep import Keep
from fuserl.curation.limits import Blank
from fuserl.curation.mixture import Mixture
from fuserl.curation.near import Near
from fuserl.curation.sifting import Step
from fuserl.errors import FuserlError
from fuserl.records.formats import FORMS, split_path, splits_of
from fuserl.rewards.made import made
from fuserl.settings import require_whole

DOMAIN_KEYS = ("sft_share", "sft", "po")  # what `domains` may say of a domain


@dataclass(frozen=True)
class Protocol:
    """What becomes of a domain's prompts."""

    sft_share: float  # of its prompts, by hash; the others are for preferences
    sft: Keep | None
    po: Keep | None


@dataclass(frozen=True)
class Planned:
    """All that `select` will do."""

    inputs: tuple[Input, ...]
    steps: tuple[Step, ...]
    default: Protocol
    domains: Mapping[str, Protocol]
    validation_fraction: float
    same_side: Near | None  # when two prompts are so alike that they must not be parted; None: when they are equal
    mixtures: Mapping[str, Mixture]  # side -> mixture of its training prompts

    def protocol(self, domain: str) -> Protocol:
        """What becomes of a domain's prompts."""
        return self.domains.get(domain, self.default)


def planned(settings: Mapping[str, Any]) -> Planned:
    """The plan of these settings.

    Raises:
        FuserlError: a setting cannot work.
    """
    default = {key: settings[key] for key in DOMAIN_KEYS}
    domains = settings["domains"] or {}
    _require(isinstance(domains, Mapping), "`domains` maps a domain to what differs there", "domains", "NAME: {...}")
    inputs = _inputs(settings["data"])
    return Planned(
        inputs=inputs,
        steps=_steps(settings["rules"] or {}),
        default=_protocol(default, ""),
        domains={
            name: _protocol(default | _of_domain(name, node), f"domains.{name}.") for name, node in domains.items()
        },
        validation_fraction=_share(settings["validation_fraction"], "validation_fraction", below_one=True),
        same_side=made(near, "same_side.near") if (near := (settings["same_side"] or {}).get("near")) else None,
        mixtures=_mixtures(settings["mixture"], [one.name for one in inputs]),
    )


def _inputs(data: Mapping[str, Any]) -> tuple[Input, ...]:
    """One input at `data.path`, or those of `data.inputs`."""
    given, shared = data["inputs"] or [], {key: data[key] for key in ("split", "format", "on_bad_row", "columns")}
    _require(
        bool(data["path"]) != bool(given),
        "there is no data set to read" if not given else "both `data.path` and `data.inputs` are given",
        "data.path",
        "give `data.path=FOLDER_FILE_OR_HUB_NAME`, or several as `data.inputs=[{path: ...}, {path: ...}]`",
    )
    nodes = given or [{"path": data["path"]}]
    _require(isinstance(nodes, list), "the inputs are a list", "data.inputs", "`data.inputs=[{path: A}, {path: B}]`")
    found = tuple(_input(node, shared, place) for place, node in enumerate(nodes))
    names = [one.name for one in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    _require(not twice, f"two inputs are called `{'`, `'.join(twice)}`", "data.inputs", "give each a `name` of its own")
    return found


def _input(node: Any, shared: Mapping[str, Any], place: int) -> Input:
    where = f"data.inputs[{place}]"
    known = {field.name for field in fields(Input)} - {"form"} | {"format"}
    unknown = sorted(set(node) - known) if isinstance(node, Mapping) else ["?"]
    _require(not unknown, "an input is a `path` with settings", where, f"its settings are {', '.join(sorted(known))}")
    given = {**shared, **node}
    _require(bool(given.get("path")), "the input has no path", where, "`path: FOLDER_FILE_OR_HUB_NAME`")
    form = given.pop("format")
    _require(form in FORMS, f"there is no data format `{form}`", f"{where}.format", f"one of {', '.join(FORMS)}")
    bad = given["on_bad_row"]
    _require(bad in ("error", "skip"), f"`{bad}` is no way to treat bad rows", f"{where}.on_bad_row", "error or skip")
    path = Path(given["path"]).expanduser()
    splits = splits_of(path)
    _require(
        not splits or (given["split"] and split_path(path, given["split"]) is not None) or given["split"] in splits,
        f"the folder has no split `{given['split']}`",
        str(path),
        f"it has {', '.join(splits)}",
    )
    name = str(given.pop("name", None) or path.name.split(".")[0] or f"input-{place}")
    return Input(name=name, form=form, **{**given, "path": str(given["path"]), "columns": given["columns"] or {}})


def _steps(rules: Mapping[str, Any]) -> tuple[Step, ...]:
    """The rules in the order of the configuration; one that is null is left out."""
    found = []
    for name, node in rules.items():
        if node is None:
            continue
        is_one = isinstance(node, Mapping) and "_target_" in node
        _require(is_one, "a rule is a `_target_` with settings", f"rules.{name}", "see `conf/rule`")
        only = node.get("only")
        _require(
            only is None or isinstance(only, list), "`only` is a list", f"rules.{name}.only", "null for all domains"
        )
        own = {"name": name} | {key: value for key, value in node.items() if key != "only"}
        found.append(Step(name, None if only is None else frozenset(only), made(own, f"rules.{name}")))
    return (*found, Step("blank", None, Blank()))


def _of_domain(name: str, node: Any) -> dict[str, Any]:
    unknown = sorted(set(node or {}) - set(DOMAIN_KEYS)) if isinstance(node or {}, Mapping) else ["?"]
    _require(not unknown, f"a domain has no setting `{unknown[:1]}`", f"domains.{name}", f"{', '.join(DOMAIN_KEYS)}")
    return dict(node or {})


def _protocol(node: Mapping[str, Any], where: str) -> Protocol:
    share = _share(node["sft_share"], f"{where}sft_share")
    sft, po = (None if not node[key] else made(node[key], f"{where}{key}") for key in ("sft", "po"))
    hint = "choose a file of `conf/sft` and of `conf/po`, or set `sft_share` to 1 (SFT alone) or 0 (preferences alone)"
    _require(sft is not None or share == 0, "prompts are for SFT, and nothing says what of them", f"{where}sft", hint)
    _require(po is not None or share == 1, "prompts are for preferences, and nothing says how", f"{where}po", hint)
    return Protocol(share, sft, po)


def _share(value: Any, where: str, *, below_one: bool = False) -> float:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
    _require(fits and not (below_one and value == 1), f"`{value}` is no share", where, "a number from 0 to 1")
    return float(value)


def _mixtures(node: Mapping[str, Any], inputs: Sequence[str]) -> dict[str, Mixture]:
    _require(node["by"] in ("domain", "input"), f"`{node['by']}` is nothing to mix by", "mixture.by", "domain or input")
    require_whole(1, **{f"mixture__{side}_total": node[f"{side}_total"] for side in ("sft", "po")})
    found = {
        side: Mixture.of(node["by"], node[side], node[f"{side}_total"], repeat=node["repeat"], where=f"mixture.{side}")
        for side in ("sft", "po")
        if node[side]
    }
    for side, mixture in found.items():
        if mixture.by == "input":
            hint = f"the inputs are {', '.join(inputs)}" if len(inputs) > 1 else "give several, as `data.inputs`"
            known = len(inputs) > 1 and set(mixture.counts or mixture.shares or {}) <= set(inputs)
            _require(known, "the mixture names an input that there is not", f"mixture.{side}", hint)
    return found


def _require(fits: bool, what: str, where: str, hint: str) -> None:
    if not fits:
        raise FuserlError(what, where=f"`{where}`", hint=hint)
