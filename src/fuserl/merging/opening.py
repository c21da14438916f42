"""The models of a merge: folders or hub names, whole or as LoRA adapters, each with a label of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fuserl.errors import FuserlError
from fuserl.merging.adapter import CONFIG, Adapted, is_adapter
from fuserl.merging.checkpoint import Checkpoint, Weights, resolved


def opened(base: str, experts: Any) -> list[Weights]:
    """Base and experts, with labels that tell them apart.

    Raises:
        FuserlError: no experts are given, or a model cannot be read.
    """
    if not isinstance(experts, list) or not experts or not all(isinstance(path, str) for path in experts):
        raise FuserlError("`experts` is no list of models", where="`experts`", hint="such as `experts=[path/a,path/b]`")
    folders = [resolved(str(path)) for path in (base, *experts)]
    if is_adapter(folders[0]):
        raise FuserlError(
            "the base is a LoRA adapter",
            where=str(folders[0]),
            hint="give the model that the adapter belongs to as `base`",
        )
    names = labels([str(base), *experts])
    whole = Checkpoint(folders[0], names[0])

    def base_of(adapter: Path) -> Callable[[str], Checkpoint]:
        """What opens the base that an adapter names, told where it is not here."""

        def find(path: str) -> Checkpoint:
            """The checkpoint at the path; the merge's own base is not opened twice."""
            try:
                there = resolved(path)
            except FuserlError as error:
                raise FuserlError(
                    f"the adapter's base `{path}` is not here",
                    where=str(adapter / CONFIG),
                    hint="set `base_model_name_or_path` there to the base's folder",
                ) from error
            return whole if there == folders[0] else Checkpoint(there, f"base of {adapter.name}")

        return find

    return [
        whole,
        *(
            Adapted(folder, name, base_of(folder)) if is_adapter(folder) else Checkpoint(folder, name)
            for folder, name in zip(folders[1:], names[1:], strict=True)
        ),
    ]


def labels(paths: Sequence[str]) -> list[str]:
    """Last parts of the paths, as many as tell them apart; a number behind those that are named twice.

    >>> labels(["runs/a/model", "runs/b/model", "base", "base"])
    ['a/model', 'b/model', 'base', 'base (2)']
    """
    parts = [Path(path).expanduser().parts for path in paths]
    distinct = len(set(parts))
    depth = next(n for n in range(1, 1 + max(map(len, parts))) if len({part[-n:] for part in parts}) == distinct)
    names, found = ["/".join(part[-depth:]) for part in parts], []
    for number, name in enumerate(names):
        times = names[: number + 1].count(name)
        found.append(name if times == 1 else f"{name} ({times})")
    return found
