"""`fuserl VERB key=value ...`: every verb is a Hydra app, and every mistake gets one clear message."""

from __future__ import annotations

import difflib
import errno
import os
import sys
from collections.abc import Callable

import fuserl
from fuserl.errors import FuserlError, Stopped
from fuserl.settings import check_values, compose, config_folder, register_resolvers
from fuserl.terminal import end_in_order

VERBS = {
    "demo": "the whole method on the small world that ships with the package, with a report",
    "generate": "ask sources: prompts in, groups of responses out",
    "score": "grade responses: rewards and verdicts, several scorers side by side",
    "select": "clean, split and mix groups, with a report of everything dropped and why",
    "train": "train a target on groups of responses",
    "plan": "what a training run will need: steps, tokens, FLOPs, memory by part, hours; loads no weights",
    "align": "what several models expect at every token, fused in the target's vocabulary",
    "merge": "a base and experts of its shape: one model",
    "evaluate": "a model on benchmarks, or on prompts it never saw: answers, grades, numbers with intervals",
    "pipeline": "the stages of a recipe in turn, finished ones skipped; then one report",
    "compare": "runs side by side: a table with intervals and tests, figures, one page",
    "doctor": "what this machine can do",
}
MODULES = {  # where a verb's function is, if not in the training module of its name
    "align": "distributions.align",
    "merge": "merging.merge",
    "generate": "sources.generate",
    "score": "rewards.score",
    "select": "curation.select",
    "train": "training.run",
    "plan": "training.dry_run",
    "evaluate": "evaluation.evaluate",
    "compare": "evaluation.compare",
}
MULTIRUN = {"--multirun", "-m"}
FLAGS = {"--help", "-h", "--cfg", "-c", "--info", "-i", "--hydra-help"}  # which only show something


def main() -> None:
    """Entry point: choose the verb, check the overrides, run."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return
    if arguments[0] == "--version":
        print(fuserl.__version__)
        return
    end_in_order()
    try:
        run_verb(arguments[0], arguments[1:])
    except FuserlError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if os.environ.get("FUSERL_TRACEBACK"):
            raise
        print(f"error: {of_the_system(error)}", file=sys.stderr)
        sys.exit(1)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.status)
    except KeyboardInterrupt:
        print("stopped; run the same command again to continue", file=sys.stderr)
        sys.exit(130)


def of_the_system(error: OSError) -> FuserlError:
    """A disk, a folder or a connection that does not do what is asked of it, where no verb knew better."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    way = "make room; the same command goes on from there" if full else "FUSERL_TRACEBACK=1 shows where it happened"
    return FuserlError(f"the system says: {error.strerror or error}", where=str(error.filename or ""), hint=way)


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
        raise FuserlError(
            f"there is no verb `{verb}`", hint=f"did you mean `{near[0]}`?" if near else "see `fuserl --help`"
        )
    register_resolvers()
    if MULTIRUN & set(overrides) and not FLAGS & set(overrides):
        from fuserl.sweeps.sweep import sweep

        sweep(verb, [one for one in overrides if one not in MULTIRUN])
        return
    if not any(flag.startswith("-") for flag in overrides):
        cfg = compose(verb, overrides)
        check_values(verb, overrides, cfg)
        _function(verb)(cfg)
        return
    import hydra

    sys.argv = [f"fuserl {verb}", *overrides]
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=verb)(_late(verb))()


def _late(verb: str) -> Callable:
    """The verb, imported when it is called, so that `--help` does not wait for torch."""

    def call(cfg):
        return _function(verb)(cfg)

    call.__module__ = _module(verb)  # whose name Hydra shows
    return call


def _function(verb: str) -> Callable:
    from importlib import import_module

    return getattr(import_module(_module(verb)), verb)


def _module(verb: str) -> str:
    return f"fuserl.{MODULES.get(verb, f'training.{verb}')}"


if __name__ == "__main__":
    main()
