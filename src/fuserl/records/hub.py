"""Single files that lie on the hub, under one way to write where: `hf://datasets/OWNER/NAME/FILE`, `hf://spaces/...`."""

from __future__ import annotations

from pathlib import Path

from fuserl.errors import FuserlError

HUB = "hf://"
KINDS = {"datasets": "dataset", "spaces": "space"}


def file_of(path: str, revision: str | None = None, *, hint: str = "without a network, give a file") -> Path:
    """A file on disk, or one of the hub, downloaded once into the hub's own cache.

    Args:
        revision: of the hub's repository; None: the newest.
        hint: the way out where it is not there.

    Raises:
        FuserlError: it is not there.
    """
    if not path.startswith(HUB):
        file = Path(path).expanduser()
        if not file.is_file():
            raise FuserlError("there is no such file", where=path, hint=hint)
        return file
    kind, *parts = path.removeprefix(HUB).split("/", 3)
    if kind not in KINDS or len(parts) != 3 or not all(parts):
        known = " or ".join(f"`{HUB}{name}/OWNER/NAME/FILE`" for name in KINDS)
        raise FuserlError("this names no file on the hub", where=path, hint=f"as in {known}")
    owner, name, inside = parts
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(f"{owner}/{name}", inside, repo_type=KINDS[kind], revision=revision))
    except Exception as error:  # of the hub's client, requests and the file system: there is no common class
        why = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise FuserlError(f"the file cannot be loaded from the hub ({why})", where=path, hint=hint) from error
