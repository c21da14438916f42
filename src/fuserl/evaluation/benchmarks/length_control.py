"""Win rates from preferences, and what is left of them when length is taken out by AlpacaEval-2's regression.

A preference is a number from 1 (the baseline's answer is better) to 2 (the model's is); less 1 it is the chance that the
model wins. The regression (Dubois et al. 2024, arXiv:2404.04475) explains it by the difference in length, by how hard
each instruction is, and by a constant; the length-controlled win rate is its mean prediction at equal lengths.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from fuserl.evaluation.benchmarks.alpaca_package import alpaca, quiet
from fuserl.evaluation.benchmarks.difficulties import DIFFICULTY, Difficulties, read_difficulties
from fuserl.evaluation.benchmarks.protocol import Number
from fuserl.records.hub import file_of

NORMAL = 1.959963984540054  # its 97.5 % quantile
PERCENT = 100.0
FOLDS = 5  # of the cross-validation that chooses the penalty, as in the package's three ways
BASELINES = 2  # gamed ones in the file; they share `GAMED_WEIGHT`
GAMED_WEIGHT = 0.2
LENGTH, CONSTANT = "length", "constant"
ENDS = (2.5, 97.5)
SHRUNK = "cross-validation chose a penalty that leaves no weight: the length-controlled win rate is 50 and says nothing"

HINT = (
    "without a network, give the file with `length_control.instruction_difficulty=FILE`, or null to go without its term"
)


def win_rates(preferences: Float[ndarray, " N"], prefix: str) -> list[Number]:
    """Win rate, its standard error (ddof 1) and the share of outright wins, in percent; NaN is not known, and left out."""
    wins = preferences[np.isfinite(preferences)] - 1.0
    if not len(wins):
        return [Number(prefix + name, None) for name in ("win_rate", "standard_error", "discrete_win_rate")]
    rate = PERCENT * float(wins.mean())
    error = PERCENT * float(wins.std(ddof=1)) / math.sqrt(len(wins)) if len(wins) > 1 else None
    ends = (None, None) if error is None else (rate - NORMAL * error, rate + NORMAL * error)
    discrete = PERCENT * float(((wins > 0.5) + 0.5 * (wins == 0.5)).mean())
    return [
        Number(prefix + "win_rate", rate, *ends, "prompts, 1.96 standard errors" if error is not None else ""),
        Number(prefix + "standard_error", error),
        Number(prefix + "discrete_win_rate", discrete),
    ]


@dataclass(frozen=True)
class Controlled:
    """A length-controlled win rate, in percent."""

    value: float | None
    low: float | None = None  # ends of the 95 % interval: prompts drawn anew, the regression fitted anew
    high: float | None = None
    way: str = ""  # the package's name for the regression
    about: Mapping[str, Any] = field(default_factory=dict)  # weights, penalty, the package's own standard error
    note: str = ""  # why there is no value, or why to distrust it


@dataclass(frozen=True)
class LengthControl:
    """The regression of conf/benchmark/alpaca_eval.yaml.

    Args:
        instruction_difficulty: a CSV file or `hf://datasets/OWNER/NAME/FILE`: with rows of gamed baselines
            (`df_gamed.csv`) the published regression; with difficulties alone, the same without its anchor; None: without
            the term of difficulty.
        revision: of the hub's repository; None: the newest.
        questions: digest of the instructions whose places the file speaks of; None: any. On others, the term is left out.
        resamples: draws of prompts for the interval; 0: none.
    """

    instruction_difficulty: str | None
    revision: str | None
    questions: str | None
    resamples: int

    def identity(self) -> Mapping[str, Any]:
        """What decides the number."""
        known = self.known
        told = (
            None if known is None else [sorted(known.of.items()), None if known.gamed is None else known.gamed.tolist()]
        )
        return {"difficulties": told, "questions": self.questions, "resamples": self.resamples}

    @cached_property
    def known(self) -> Difficulties | None:
        """The file's content.

        Raises:
            FuserlError: it cannot be found or read.
        """
        if self.instruction_difficulty is None:
            return None
        return read_difficulties(file_of(self.instruction_difficulty, self.revision, hint=HINT))

    def of(
        self,
        preferences: Float[ndarray, " N"],
        longer_by: Float[ndarray, " N"],
        places: Sequence[int],
        digest: str,
        seed: int,
    ) -> Controlled:
        """The length-controlled win rate.

        Args:
            preferences: 1 to 2, NaN where not known.
            longer_by: characters of the baseline's answer less those of the model's.
            places: of the instructions among the benchmark's.
            digest: of the benchmark's instructions.
            seed: of the interval.

        Raises:
            FuserlError: `alpaca-eval` is not installed, or the file of difficulties cannot be read.
        """
        known = self.known
        applies = known is not None and self.questions in (None, digest) and all(place in known.of for place in places)
        difficulty = np.array([known.of[place] for place in places]) if known is not None and applies else None
        gamed = known.gamed if known is not None and applies else None
        note = ""
        if self.instruction_difficulty is not None and not applies:
            note = "instruction difficulties are of other questions: the length-controlled win rate goes without them"
        return _controlled(preferences - 1.0, longer_by, difficulty, gamed, self.resamples, seed, note)


def _controlled(
    wins: Float[ndarray, " N"],
    longer_by: Float[ndarray, " N"],
    difficulty: Float[ndarray, " N"] | None,
    gamed: Float[ndarray, "G 3"] | None,
    resamples: int,
    seed: int,
    note: str,
) -> Controlled:
    way = {(True, True): "length_controlled_v1", (True, False): "length_controlled_noreg"}.get(
        (difficulty is not None, gamed is not None), "length_controlled_minimal"
    )
    if why := _unfit(wins, longer_by, gamed is not None):
        return Controlled(None, way=way, note=why)
    package = alpaca("metrics.glm_winrate")
    fitted = Regression(package, gamed).fit(wins, longer_by, difficulty, None)
    rate = PERCENT * float(fitted.expected.mean())
    if not math.isfinite(rate):
        return Controlled(None, way=way, note="the regression of the length-controlled win rate found no finite number")
    if package.get_is_extreme_changes(PERCENT * float(np.nanmean(wins)), rate):
        note = "; ".join(filter(None, [note, "the length-controlled win rate is far from the raw one: distrust it"]))
    if not any(fitted.weights.values()):  # a bootstrap at this penalty would find the same everywhere
        note, resamples = "; ".join(filter(None, [note, SHRUNK])), 0
    drawn = _drawn(Regression(package, gamed), wins, longer_by, difficulty, fitted.penalty, resamples, seed)
    low, high = (float(end) for end in np.percentile(drawn, ENDS)) if len(drawn) else (None, None)
    error = PERCENT * float(fitted.expected.std(ddof=1)) / math.sqrt(len(fitted.expected))
    about = {"weights": fitted.weights, "C": fitted.penalty, "package_standard_error": error}
    return Controlled(rate, low, high, way, about, note)


def _unfit(wins: Float[ndarray, " N"], longer_by: Float[ndarray, " N"], anchored: bool) -> str:
    """Why no regression can be fitted; empty where it can. The package says NaN, or fails."""
    known = int(np.isfinite(wins).sum())
    if known < FOLDS:
        return f"{known} known preferences are too few for the length-controlled win rate, which needs {FOLDS}"
    if not np.isfinite(longer_by).all() or longer_by.std() == 0:
        return "all answers differ equally in length from the baseline's: there is nothing to control"
    if not anchored and np.nanmin(wins) == np.nanmax(wins) and np.nanmin(wins) in (0.0, 1.0):
        return "one side wins outright every time: the length-controlled win rate has nothing to go by"
    return ""


def _drawn(
    regression: Regression,
    wins: Float[ndarray, " N"],
    longer_by: Float[ndarray, " N"],
    difficulty: Float[ndarray, " N"] | None,
    penalty: float,
    resamples: int,
    seed: int,
) -> Float[ndarray, " R"]:
    """The rate, in percent, of so many draws of prompts, each fitted anew at the penalty that was chosen for all."""
    rng, rates = np.random.default_rng(seed), []
    for _ in range(resamples):
        rows = rng.integers(len(wins), size=len(wins))
        if _unfit(wins[rows], longer_by[rows], regression.gamed is not None):
            continue
        there = None if difficulty is None else difficulty[rows]
        rates.append(PERCENT * float(regression.fit(wins[rows], longer_by[rows], there, penalty).expected.mean()))
    return np.array([rate for rate in rates if math.isfinite(rate)], dtype=np.float64)


@dataclass(frozen=True)
class Fitted:
    """A regression's coefficients, and the chance of winning that it expects of every prompt at equal lengths."""

    expected: Float[ndarray, " N"]
    weights: Mapping[str, float]
    penalty: float  # C of scikit-learn, the inverse of the penalty's strength


@dataclass(frozen=True)
class Regression:
    """The package's logistic regression (L1, liblinear) on features made here as it makes them."""

    package: Any  # alpaca_eval.metrics.glm_winrate
    gamed: Float[ndarray, "G 3"] | None

    def fit(
        self,
        wins: Float[ndarray, " N"],
        longer_by: Float[ndarray, " N"],
        difficulty: Float[ndarray, " N"] | None,
        penalty: float | None,
    ) -> Fitted:
        """Fit to known wins, expect all; without a penalty, it is chosen by cross-validation."""
        import sklearn
        from pandas import DataFrame, Series

        lengths = np.tanh(longer_by / longer_by.std(ddof=1))
        ours = {LENGTH: lengths, DIFFICULTY: difficulty, CONSTANT: np.ones_like(lengths)}
        table = DataFrame({name: column for name, column in ours.items() if column is not None})
        equal, rows, weight = table.assign(**{LENGTH: 0.0}), table.assign(preference=wins), None
        if self.gamed is not None:
            size, hard, won = self.gamed.T
            there = DataFrame({LENGTH: np.tanh(size), DIFFICULTY: hard, CONSTANT: 0.0, "preference": won})
            rows = _stacked(there, rows)
            weight = np.where(rows[CONSTANT] == 1.0, 1.0, GAMED_WEIGHT / BASELINES)
        finite = rows["preference"].notna()
        chosen = {"n_splits": FOLDS} if penalty is None else {"n_splits": 0, "C": penalty}
        with quiet(), sklearn.config_context():  # it switches metadata routing on
            model = self.package.fit_LogisticRegressionCV(
                rows[finite],
                "preference",
                is_ytrue_proba=True,
                sample_weight=None if weight is None else Series(weight)[finite],
                **chosen,
            )
            expected = model.predict_proba(equal)[:, 1]
        found = float(np.ravel(model.C_)[0]) if penalty is None else penalty
        weights = dict(zip(table.columns, map(float, model.coef_[0]), strict=True))
        return Fitted(np.asarray(expected, dtype=np.float64), weights, found)


def _stacked(above: Any, below: Any) -> Any:
    from pandas import concat

    return concat([above, below], axis=0, ignore_index=True)
