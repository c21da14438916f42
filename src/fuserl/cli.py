"""`fuserl VERB key=value ...`: every verb is a Hydra app, and every mistake gets one clear message."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import fuserl
from fuserl.errors import FuserlError

VERBS = {
    "demo": "the whole method on the small world that ships with the package, with a report",
    "train": "train a target on groups of responses",
    "pipeline": "the stages of a recipe in turn, finished ones skipped",
    "doctor": "what this machine can do",
}


def config_folder() -> Path:
    """`conf/`: inside the installed package, or at the root of a checkout."""
    inside = Path(fuserl.__file__).parent / "conf"
    return inside if inside.is_dir() else Path(fuserl.__file__).parents[2] / "conf"


def register_resolvers() -> None:
    """`${package:path}` is a path inside the installed package."""
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("package", lambda path: str(Path(fuserl.__file__).parent / path), replace=True)


def main() -> None:
    """Entry point: choose the verb, check the overrides, run."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return
    if arguments[0] == "--version":
        print(fuserl.__version__)
        return
    try:
        run_verb(arguments[0], arguments[1:])
    except FuserlError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped; run the same command again to continue", file=sys.stderr)
        sys.exit(130)


def usage() -> str:
    """What `fuserl` alone prints."""
    verbs = "\n".join(f"  {name:<10}{what}" for name, what in VERBS.items())
    return (
        f"fuserl {fuserl.__version__}: train one model from what many said\n\n"
        f"usage: fuserl VERB [key=value ...] [--multirun]\n\n{verbs}\n\n"
        "fuserl VERB --help lists a verb's settings and groups; output=DIR sets the folder it writes."
    )


def run_verb(verb: str, overrides: list[str]) -> None:
    """Compose `conf/VERB.yaml` with the overrides and run the verb.

    Raises:
        FuserlError: unknown verb or setting, or whatever the verb finds wrong.
    """
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        raise FuserlError(f"there is no verb `{verb}`", hint=f"did you mean `{near[0]}`?" if near else "see `fuserl --help`")
    register_resolvers()
    if not any(flag.startswith("-") for flag in overrides):
        _function(verb)(compose(verb, overrides))
        return
    import hydra

    sys.argv = [f"fuserl {verb}", *overrides]
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=verb)(_function(verb))()


def _function(verb: str) -> Callable:
    """Imports are late, so that `--help` does not wait for torch."""
    from importlib import import_module

    return getattr(import_module(f"fuserl.training.{'run' if verb == 'train' else verb}"), verb)


def compose(verb: str, overrides: list[str]):
    """The configuration of a verb, without running it.

    Raises:
        FuserlError: a setting or an option of a group does not exist, with the nearest one that does.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    register_resolvers()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
            try:
                cfg = hydra_compose(verb, overrides)
            except (HydraException, OmegaConfBaseException) as error:
                raise _config_error(error, verb, overrides, hydra_compose) from error
    finally:
        GlobalHydra.instance().clear()
    _require_complete(cfg)
    return cfg


def _require_complete(cfg) -> None:
    from omegaconf import OmegaConf

    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise FuserlError(
            f"{', '.join(f'`{key}`' for key in missing)} must be given", hint=f"add `{missing[0]}=...` to the command"
        )


def _config_error(error: Exception, verb: str, overrides: list[str], hydra_compose: Callable) -> FuserlError:
    """Hydra's complaint in our form, with the nearest existing key."""
    text = " ".join(" ".join(str(part) for part in (error, error.__cause__) if part).split())
    key = re.search(r"Key '([^']+)' is not in struct", text) or re.search(r"Could not override '([^']+)'", text)
    if key:
        from fuserl.training.folder import leaves

        wanted = next((o.split("=")[0].lstrip("+~") for o in overrides if key[1] in o.split("=")[0]), key[1])
        groups = [o for o in overrides if "/" not in o and (config_folder() / o.split("=")[0]).is_dir()]
        try:
            from omegaconf import OmegaConf

            known = [k for k, _ in leaves(OmegaConf.to_container(hydra_compose(verb, groups)))]
        except Exception:  # the groups themselves may be wrong; then there is no list to choose from
            known = []
        near = difflib.get_close_matches(wanted, known, n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"`fuserl {verb} --help` lists the settings"
        return FuserlError(f"there is no setting `{wanted}`", where=f"`fuserl {verb}`", hint=hint)
    return FuserlError(text, where=f"settings of `fuserl {verb}`", hint=f"`fuserl {verb} --help` lists settings and groups")


if __name__ == "__main__":
    main()
