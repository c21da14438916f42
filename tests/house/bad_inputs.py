"""Bad commands of every verb: name -> (what the message says, overrides that replace the good ones of `bad_world.GOOD`)."""

from __future__ import annotations

Cases = dict[str, tuple[str, ...]]

# What every verb that reads a data set says of a broken one.
DATA_SAYS = {
    "nowhere": "no such file or folder",
    "nofolder": "no such file or folder",
    "empty": "holds no",
    "loop": "no such file or folder|cannot be read",
    "long_name": "at most 255 bytes",
    "empty_file": "is empty|no prompt|no group",
    "blank_lines": "is empty|no prompt|no group",
    "nul_bytes": "not valid JSON",
    "binary": "not valid JSON|not valid UTF-8",
    "latin1": "not valid UTF-8",
    "utf16": "not valid UTF-8",
    "array": "must be an object",
    "number": "must be an object",
    "half": "not valid JSON",
    "deep": "not valid JSON",
    "huge_number": "not a finite number",
    "many_digits": "not valid JSON",
    "no_gzip": "cut short or broken",
    "half_gzip": "cut short or broken|not valid JSON",
    "gzip_of_noise": "not valid UTF-8|not valid JSON",
    "no_parquet": "missing or half-written",
    "numbers_table": "`prompt`",
    "wrong_columns": "`prompt`|prompt",
    "null_table": "`prompt`",
    "dates_table": "`prompt`",
    "ending": "ending is not known",
    "set_without_part": "missing or half-written",
    "set_damaged": "half-written, or was changed",
    "set_manifest_empty": "manifest cannot be read",
    "set_manifest_list": "manifest cannot be read",
    "set_manifest_types": "manifest cannot be read",
    "set_manifest_deep": "manifest cannot be read",
    "set_outside": "outside",
}
DATA = {name: (words, f"data.path=${name}") for name, words in DATA_SAYS.items()}
MODEL_SAYS = {
    "nofolder": "cannot be loaded|no such",
    "empty": "cannot be loaded",
    "loop": "cannot be loaded",
    "file": "cannot be loaded",
    "no_config": "cannot be loaded|config",
    "config_no_json": "cannot be loaded|config",
    "config_binary": "cannot be loaded|config",
    "config_list": "cannot be loaded|config",
    "config_unknown": "cannot be loaded|config",
    "config_types": "cannot be loaded|config",
    "config_negative": "cannot be loaded|config",
    "config_wider": "cannot be loaded|shape|other shapes",
    "no_weights": "cannot be loaded|weights",
    "weights_empty": "cannot be loaded|weights",
    "weights_cut": "cannot be loaded|weights",
    "weights_noise": "cannot be loaded|weights",
    "weights_huge_header": "cannot be loaded|weights",
    "pickled": "cannot be loaded|pickled",
    "no_tokenizer": "tokenizer",
    "tokenizer_noise": "tokenizer",
    "tokenizer_types": "tokenizer",
    "template_broken": "template",
    "template_escape": "template",
    "template_binary": "template|tokenizer",
    "template_empty": "template",
    "adapter": "cannot be loaded|adapter",
    "adapter_hub": "cannot be loaded|adapter",
    "remote_code": "trust_remote_code|cannot be loaded",
}
HUB = {
    "hub name without network": "nobody/there-is-no-such-model",
    "path out of the hub's names": "'../../etc'",
    "name with NUL": "'a\0b'",
    "very long name": "x" * 5000,
    "name of a URL": "'http://127.0.0.1:9/model'",
}
WEIGHTS_OF_MODEL = (
    "no_weights",
    "weights_",
    "config_",
    "no_config",
    "pickled",
    "adapter",
    "remote",
    "nofolder",
    "empty",
    "loop",
    "file",
)


def models(key: str, only: tuple[str, ...] = ()) -> Cases:
    """Every broken model under a verb's setting."""
    kept = {name: words for name, words in MODEL_SAYS.items() if not only or name.startswith(only)}
    return {f"model {name}": (words, f"{key}=${name}") for name, words in kept.items()} | {
        f"model {name}": ("cannot be loaded|no folder here|without NUL|at most 255 bytes", f"{key}={value}")
        for name, value in HUB.items()
    }


def some(cases: Cases, first: int, every: int = 4) -> Cases:
    """One in so many, so that a suite stays short: verbs read data and models through the same functions, tested whole once."""
    return {name: case for at, (name, case) in enumerate(cases.items()) if at % every == first}


def outputs(*verbs_own: str) -> Cases:
    """Folders that cannot be written."""
    said = "cannot be read|holds something|cannot be written|cannot be opened|cannot be made|cannot be kept"
    return {
        "output under a file": (said, "output=$file/out", *verbs_own),
        "output is a file": (said, "output=$file", *verbs_own),
        "output with a long name": ("at most 255 bytes", f"output=$empty/{'x' * 300}", *verbs_own),
        "output in a loop of links": (said, "output=$loop/out", *verbs_own),
        "output on a folder of the system": (said, "output=/proc/fuserl", *verbs_own),
    }


def rejected(key: str, *values: str) -> Cases:
    """Values of a setting whose message names the setting."""
    last = key.split(".")[-1]
    return {f"{key}={value}": (last, f"{key}={value}") for value in values}


def several(*groups: Cases) -> Cases:
    return {name: case for group in groups for name, case in group.items()}


GENERATE = several(
    {name: case for name, case in some(DATA, 0).items() if name not in ("half", "half_gzip", "huge_number")},  # reads a few prompts
    some(models("+sources.t.path"), 1, 3) | {"no source": ("source", "~~", "data.path=$data")},
    outputs(),
    rejected("samples", "0", "-1", "many", "[1]", "nan", "1.5"),
    rejected("max_tokens", "0", "-5", "x", "inf", "true"),
    rejected("data.limit", "-1", "x", "[1]"),
    rejected("data.part", "[0.5,0.5]", "[a,b]", "[0]", "half", "[-1,2]"),
    rejected("give_up", "0", "-1", "never"),
    rejected("on_failure", "shrug"),
    rejected("seed", "one", "[1]", "1.5"),
    rejected("engine.device", "moon", "cuda:99"),
    rejected("engine.batch_tokens", "0", "x", "-1"),
    rejected("data.format", "xml"),
    rejected("data.on_bad_row", "cry"),
    rejected("data.columns", "prompt", "{prompt: 7}", "{promt: a}"),
    {
        "temperature below zero": ("temperature", "+sources.t.sampling.temperature=-1"),
        "temperature that is no number": ("temperature", "+sources.t.sampling.temperature=nan"),
        "top_p of two": ("top_p", "+sources.t.sampling.top_p=2"),
        "stop that is no list": ("stop", "+sources.t.sampling.stop=7"),
        "unknown sampling": ("sampling", "+sources.t.sampling.temprature=1"),
        "unknown setting of a source": ("setting", "+sources.t.pth=1"),
            "template of a folder": ("template", "+sources.t.chat_template=$jinja_folder"),
        "template that is broken": ("template", "+sources.t.chat_template=$jinja_broken"),
        "template that is no text": ("template", "+sources.t.chat_template=$jinja_binary"),
        "template that is nowhere": ("template", "+sources.t.chat_template=$nofolder/t.jinja"),
        "system that is a list": ("system", "+sources.t.system=[1]"),
        "unknown dtype": ("dtype", "+sources.t.dtype=float7"),
        "context of zero": ("context", "+sources.t.context=0"),
        "server without address": ("url", "engine=openai"),
        "server with a file's address": ("url", "engine=openai", "engine.url='file:///etc/passwd'"),
        "server with an odd port": ("url", "engine=openai", "engine.url='http://h:99999/v1'"),
        "key in place of its name": ("name of an environment variable", "engine=openai", "engine.url='http://h/v1'", "engine.key_from='sk-1 2'"),
    },
)  # fmt: skip
SCORE = several(
    DATA,
    outputs(),
    rejected("on_failure", "shrug"),
    rejected("give_up", "0", "x"),
    rejected("data.limit", "-1", "x"),
    {
        "no scorer": ("reward", "~~", "data.path=$data", "output=$empty/x"),
        "unknown scorer": ("nobody", "reward=nobody"),
        "rewards that are a list": ("rewards", "+rewards=[1]"),
        "a scorer that names no class": ("scorer", "~~", "data.path=$data", "+rewards.x={a: 1}"),
        "a scorer that cannot be imported": ("cannot be made", "~~", "data.path=$data", "+rewards.x={_target_: no.such.Thing}"),
        "a scorer that is a function of the system": ("scorer|cannot be made", "~~", "data.path=$data", "+rewards.x={_target_: os.getcwd}"),
        "a scorer with a name of a path": ("name", "~~", "data.path=$data", "+rewards={../x: {_target_: fuserl.rewards.format.FormatScorer}}"),
        "function that does not exist": ("function", "~~", "data.path=$data", "reward=function", "rewards.function.path=no.such.function"),
        "function without a dot": ("function", "~~", "data.path=$data", "reward=function", "rewards.function.path=len"),
        "function that is no text": ("function|path", "~~", "data.path=$data", "reward=function", "rewards.function.path=7"),
        "function that cannot be called": ("function|call", "~~", "data.path=$data", "reward=function", "rewards.function.path=os.sep"),
        "domains that are a number": ("domains", "rewards.literal.domains=7"),
        "field that is a list": ("field", "rewards.literal.gold.field=[1]"),
        "combination that wants more": ("combine", "combine=weighted"),
        "gate of nobody": ("combine|gate", "combine=gated"),
    },
    {name.replace("model ", "reward "): (words, "~~", "data.path=$data", "reward=reward_model", override)
     for name, (words, override) in some(models("rewards.reward_model.path", WEIGHTS_OF_MODEL), 0, 2).items()},
    {
        "reward model without a head": ("head", "~~", "data.path=$data", "reward=reward_model", "rewards.reward_model.path=$model", "output=$empty/rm"),
        "window of zero": ("window", "~~", "data.path=$data", "reward=reward_model", "rewards.reward_model.path=$model", "rewards.reward_model.window=0"),
        "length of zero": ("max_length", "~~", "data.path=$data", "reward=reward_model", "rewards.reward_model.path=$model", "rewards.reward_model.max_length=0"),
        "judge without address": ("url", "~~", "data.path=$data", "reward=judge", "rewards.judge.source.path=m"),
        "judge without the answer": ("answer|template", "~~", "data.path=$data", "reward=judge", "rewards.judge.source.path=m", "rewards.judge.template=x", "rewards.judge.engine.url='http://h/v1'"),
        "judge with low above high": ("low|high", "~~", "data.path=$data", "reward=judge", "rewards.judge.source.path=m", "rewards.judge.low=11", "rewards.judge.engine.url='http://h/v1'"),
        "judge with no attempt": ("attempts", "~~", "data.path=$data", "reward=judge", "rewards.judge.source.path=m", "rewards.judge.attempts=0", "rewards.judge.engine.url='http://h/v1'"),
    },
)  # fmt: skip
SELECT = several(
    some(DATA, 1),
    outputs(),
    rejected("sft_share", "2", "-0.1", "x", "nan", "[1]"),
    rejected("validation_fraction", "1", "-1", "x", "nan"),
    rejected("data.format", "xml"),
    rejected("data.inputs", "7", "[1]", "{a: 7}"),
    rejected("mixture.by", "colour", "[1]"),
    rejected("mixture.sft", "{a: -1}", "{a: x}", "7"),
    rejected("mixture.sft_total", "0", "x", "-1"),
    rejected("target_source", "[1]"),
    rejected("trl", "7"),
    {
        "no data": ("data.path", "~~", "rules=none"),
        "unknown rule": ("nobody", "rules=nobody"),
        "unknown pairs": ("nobody", "po=nobody"),
        "domains that are a list": ("domains", "domains=[1]"),
        "domains with unknown settings": ("setting|domain", "domains={math: {sft_shar: 1}}"),
        "rules that are a list": ("settings of `fuserl select`", "+rules=[1]"),
        "a rule that names nothing": ("rule", "+rules.x={a: 1}"),
        "threshold of two": ("threshold", "rules=standard", "rules.duplicate_prompts.near.threshold=2"),
    },
)  # fmt: skip
ALIGN = several(
    some(DATA, 2),
    {name.replace("model ", "target "): case for name, case in some(models("target.path"), 0).items()},
    {
        name: case for name, case in some(models("+sources.a.path"), 2).items() if "template" not in name
    },  # the target's is used
    outputs(),
    rejected("k", "0", "-1", "x", "[1]", "99999999"),
    rejected("size", "0", "x", "-1"),
    rejected("pool", "moon", "[1]"),
    rejected("pairwise", "perhaps"),
    {
        "no source": ("source", "~~", "data=own", "data.path=$data", "target.path=$model"),
        "cache under a file": ("cannot be", "cache=$file/cache"),
        "cache in a loop of links": ("cannot be", "cache=$loop/cache"),
        "source name of a path": ("name|called", "+sources={../x: {path: $model}}"),
        "very long source name": ("name|called", "+sources={" + "x" * 300 + ": {path: $model}}"),
        "unknown device": ("device", "collector.device=moon"),
    },
)
MERGED = "no such model folder|config.json|weights|adapter|not what it should be|no folder here|cannot be|without NUL|at most 255"
MERGE = several(
    {
        name.replace("model ", "base "): (MERGED, case[1])
        for name, case in some(models("base", WEIGHTS_OF_MODEL), 0, 2).items()
    },
    {
        f"expert {name}": (MERGED, f"experts=[${name},$expert]")
        for name in list(MODEL_SAYS)[::3]
        if name.startswith(WEIGHTS_OF_MODEL)
        and name not in ("config_types", "config_negative", "config_wider")  # the base's is used
    },
    outputs(),
    rejected("merge.dtype", "float7", "[1]"),
    rejected("merge.weights", "x", "{a: 1}", "[1]", "[a,b]", "nan"),
    rejected("shard_gb", "0", "-1", "x", "nan"),
    rejected("reload_gb", "x"),
    {
        "no expert": ("expert", "experts=[]"),
        "experts that are a text": ("expert", "experts=$expert"),
        "experts that are numbers": ("expert", "experts=[1,2]"),
        "no base": ("base", "~~", "experts=[$expert]"),
        "base that is a number": ("no folder here", "base=7"),
        "unknown method": ("nobody", "merge=nobody"),
        "select of two": ("select", "merge=sce", "merge.select=2"),
        "select of nothing": ("select", "merge=sce", "merge.select=0"),
        "unknown variant": ("variant|moon", "merge=sce", "merge.variant=moon"),
    },
)
EVALUATE = several(
    some(DATA, 3),
    models("model"),
    outputs(),
    rejected("samples", "-1", "x", "[1]", "1.5"),
    rejected("max_new_tokens", "0", "-1", "x"),
    rejected("temperature", "-1", "x", "nan"),
    rejected("packing", "moon"),
    rejected("max_tokens", "0", "-1", "x"),
    rejected("device", "moon"),
    rejected("dtype", "float7", "[1]"),
    rejected("give_up", "x"),
    rejected("data.part", "[a,b]", "[0]", "half"),
    rejected("seed", "x", "[1]"),
    {
        "unknown way of failures": ("failures", "benchmark=[gsm8k]", "on_failure=shrug"),
        "no model": ("model", "~~"),
        "unknown benchmark": ("nobody", "benchmark=[nobody]"),
        "benchmark without its file": ("cannot|no such", "benchmark=[gsm8k]", "benchmarks.gsm8k.questions.path=$nowhere"),
        "benchmark of binary": ("UTF-8|JSON", "benchmark=[gsm8k]", "benchmarks.gsm8k.questions.path=$binary"),
        "benchmark of other rows": ("question|`", "benchmark=[gsm8k]", "benchmarks.gsm8k.questions.path=$data"),
        "benchmark on a hub without network": ("hub|read|loaded", "benchmark=[gsm8k]"),
        "a benchmark that names nothing": ("benchmark", "+benchmarks.x={a: 1}"),
        "a benchmark that is no benchmark": ("benchmark|cannot be made", "+benchmarks.x={_target_: os.getcwd}"),
        "unknown scorer": ("score|function", "samples=1", "score=no.such.function"),
        "scorer that is no text": ("score|function", "samples=1", "score=7"),
        "template that is broken": ("template", "chat_template=$jinja_broken"),
        "template that is no text": ("template", "chat_template=$jinja_binary"),
        "cache under a file": ("cannot be", "cache=$file/cache"),
    },
)  # fmt: skip
TRAIN = several(
    {name: case for name, case in DATA.items() if name in ("loop", "deep", "set_outside", "set_damaged", "many_digits", "dates_table")},
    some(models("target.path", ("config_", "weights_", "template_", "tokenizer_", "adapter", "remote", "loop", "file")), 1, 3),
    outputs(),
    rejected("batch_size", "0", "x", "[1]", "nan"),
    rejected("max_steps", "0", "-1"),
    rejected("optimizer.lr", "x", "nan", "[1]"),
    rejected("trainer.max_tokens", "0", "-1"),
    rejected("data.max_length", "x"),
    rejected("data.sources", "s0", "[nobody]"),
    rejected("logger", "nobody"),
    rejected("objective", "nobody"),
    rejected("seed", "x"),
    {"cache under a file": ("cannot be", "cache=$file/cache")},
)  # fmt: skip
PLAN = several(
    {name: case for name, case in DATA.items() if name in ("nowhere", "binary", "deep", "set_outside")},
    some(
        models(
            "target.path",
            (
                "config_n",
                "config_l",
                "config_b",
                "config_t",
                "config_u",
                "no_config",
                "tokenizer_",
                "template_broken",
                "remote",
                "file",
            ),
        ),
        1,
        3,
    ),
    rejected("plan.mfu", "0", "2", "x", "nan"),
    rejected("hardware", "nobody"),
    rejected("hardware.memory_gib", "0", "-1", "x"),
    rejected("batch_size", "0", "x"),
)
COMPARE = several(
    {
        f"run {name}": ("run|config", f"runs=[${name}]")
        for name in ("run_no_config", "run_config_broken", "run_config_list", "run_config_tag", "run_config_binary")
    },
    {
        f"run {name}": ("run|metrics|summary", f"runs=[${name}]")
        for name in (
            "run_metrics_binary",
            "run_metrics_words",
            "run_summary_list",
            "run_summary_broken",
            "run_summary_deep",
        )
    },
    {
        "no runs": ("no complete run", "runs=[]"),
        "runs nowhere": ("no run|runs", "runs=[$nofolder]"),
        "runs in an empty folder": ("no complete run", "runs=[$empty]"),
        "runs in a loop of links": ("no run|runs", "runs=[$loop]"),
        "runs of numbers": ("runs|no run", "runs=[7]"),
        "runs that are a number": ("runs|no run", "runs=7"),
        "runs with NUL": ("runs|no run", 'runs=["a\0b"]'),
        "runs with a long name": ("runs|no run", f"runs=[{'x' * 5000}]"),
    },
    outputs(),
    rejected("baseline", "nobody"),
    rejected("metric", "val/nobody"),
    rejected("at", "middle"),
    rejected("by", "no.such.setting"),
    rejected("only", "'nobody=1'", "7"),
    rejected("papers", "[nobody]", "7"),
    rejected("names", "7"),
    rejected("answers", "x", "-1"),
    rejected("heat", "nobody"),
)
DOCTOR: Cases = {
    "prune of text": ("prune_older_than_days", "prune_older_than_days=old"),
    "prune below zero": ("prune_older_than_days", "prune_older_than_days=-1"),
    "prune of nan": ("prune_older_than_days", "prune_older_than_days=nan"),
    "unknown setting": ("cahce", "~~", "cahce=x"),
}
DEMO = several(
    {
        "samples of text": ("samples", "~~", "samples=x"),
        "unknown setting": ("setting", "~~", "sampels=1"),
        "seed of text": ("seed", "~~", "seed=x"),
    },
)
PIPELINE: Cases = {
    "unknown recipe": ("nobody", "~~", "recipe=nobody"),
    "output is a file": ("cannot be", "~~", "output=$file"),
    "output under a file": ("cannot be", "~~", "output=$file/out"),
    "overrides that are a text": ("overrides|override", "~~", "overrides=7", "output=$empty/p"),
    "an override of nothing": ("objectve", "~~", "overrides=[objectve.beta=1]", "output=$empty/p"),
    "stages that are no list": ("stages", "~~", "recipe.stages=7", "output=$empty/p"),
    "a stage without a name": ("stage|name", "~~", "recipe.stages=[{overrides: []}]", "output=$empty/p"),
    "a stage named outside": ("stage|name", "~~", "recipe.stages=[{name: ../../x, overrides: []}]", "output=$empty/p"),
    "share of text": ("share", "~~", "recipe.share=half", "output=$empty/p"),
}
CASES: dict[str, Cases] = {
    "generate": GENERATE,
    "score": SCORE,
    "select": SELECT,
    "align": ALIGN,
    "merge": MERGE,
    "evaluate": EVALUATE,
    "train": TRAIN,
    "plan": PLAN,
    "compare": COMPARE,
    "doctor": DOCTOR,
    "demo": DEMO,
    "pipeline": PIPELINE,
}
