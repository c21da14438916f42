"""Objects from `_target_` nodes of the configuration, mistakes told in our form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fuserl.errors import FuserlError


def made(node: Mapping[str, Any], where: str) -> Any:
    """What a node describes.

    Args:
        where: the node's place in the configuration, for messages.

    Raises:
        FuserlError: it names nothing that can be imported, or with settings that it does not take.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return instantiate(dict(node), _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, FuserlError):
            raise error.__cause__ from error
        cause = error.__cause__ or error
        raise FuserlError(
            f"this cannot be made: {str(cause).splitlines()[0]}",
            where=f"`{where}`, target `{node.get('_target_')}`",
            hint="check the target's name and the settings beside it",
        ) from error
