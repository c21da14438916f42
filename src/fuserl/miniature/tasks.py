"""Eight small tasks with graded answers. Four have one right answer, four have many.

A prompt starts with its domain's word, so that a scorer needs nothing but the prompt and the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from fuserl.errors import FuserlError

ONES = ("", "i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix")
TENS = ("", "x", "xx", "xxx", "xl", "l", "lx", "lxx", "lxxx", "xc")
HUNDREDS = ("", "c", "cc", "ccc", "cd", "d", "dc")
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Task:
    """One domain.

    Attributes:
        ask: draws a prompt.
        good: a fully right answer (one of many where there are many).
        flawed: an answer with an accidental mistake, partly right.
        mistaken: the answer of someone who always makes the same mistake.
        score: quality of an answer in [0, 1]; 1 means fully right.
    """

    ask: Callable[[Random], str]
    good: Callable[[str, Random], str]
    flawed: Callable[[str, Random], str]
    mistaken: Callable[[str, Random], str]
    score: Callable[[str, str], float]


def score(prompt: str, answer: str, reference: str | None = None) -> float:
    """Quality of an answer in [0, 1].

    >>> score("sort dbca", "abcd"), score("between 10 and 20", "15"), score("sort dbca", "abdc")
    (1.0, 1.0, 0.5)

    Raises:
        FuserlError: the prompt is none of these tasks.
    """
    task = TASKS.get(prompt.split(" ", 1)[0])
    if task is None:
        raise FuserlError(
            "this is no prompt of the miniature",
            where=f"`{prompt[:40]}`",
            hint=f"prompts start with one of {', '.join(TASKS)}; give your own `probe.score` for your own data",
        )
    return task.score(prompt, answer.strip())


def solved(prompt: str, answer: str) -> bool:
    """Whether the answer is fully right."""
    return score(prompt, answer) == 1.0


def numbers(text: str) -> list[int]:
    """The whole numbers of a text that holds nothing else; empty otherwise."""
    words = text.split()
    fits = all(word.isascii() and word.isdigit() and len(word) < 6 for word in words)
    return [int(word) for word in words] if fits else []


def closeness(answer: str, right: str) -> float:
    """Share of equal characters by position, over the longer length; below 1 for unequal texts.

    >>> closeness("abdc", "abcd")
    0.5
    """
    if answer == right:
        return 1.0
    equal = sum(a == b for a, b in zip(answer, right, strict=False))
    return equal / max(len(answer), len(right), 1)


def exactly(right: Callable[[str], str]) -> Callable[[str, str], float]:
    """Grades answers of a task that has one right answer."""
    return lambda prompt, answer: closeness(answer, right(prompt))


def swapped(text: str, rng: Random) -> str:
    """Two neighbouring characters exchanged, or one character replaced where that changes nothing."""
    if len(text) < 2:
        return text + rng.choice("ix1")
    at = rng.randrange(len(text) - 1)
    other = text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return other if other != text else text[:at] + rng.choice(LETTERS[:10]) + text[at + 1 :]


def _letters(low: int, high: int) -> Callable[[Random], str]:
    return lambda rng: "".join(rng.sample(LETTERS, rng.randint(low, high)))


def _word(prompt: str) -> str:
    return prompt.split()[1]


def _given(prompt: str) -> list[int]:
    return [int(word) for word in prompt.split() if word.isdigit()]


def roman(number: int) -> str:
    """Lower-case Roman numeral of 1 to 699.

    >>> roman(349)
    'cccxlix'
    """
    return HUNDREDS[number // 100] + TENS[number // 10 % 10] + ONES[number % 10]


def additive_roman(number: int) -> str:
    """Roman numeral of someone who never subtracts: 4 is iiii.

    >>> additive_roman(49)
    'xxxxviiii'
    """
    parts = []
    for value, sign in ((500, "d"), (100, "c"), (50, "l"), (10, "x"), (5, "v"), (1, "i")):
        parts.append(sign * (number // value))
        number %= value
    return "".join(parts)


def _single(ask: Callable[[Random], str], right: Callable[[str], str], mistake: Callable[[str], str]) -> Task:
    """A task with one right answer."""
    return Task(
        ask=ask,
        good=lambda prompt, rng: right(prompt),
        flawed=lambda prompt, rng: swapped(right(prompt), rng),
        mistaken=lambda prompt, rng: mistake(prompt),
        score=exactly(right),
    )


def _score_largest(prompt: str, answer: str) -> float:
    given, found = sorted(_given(prompt)), numbers(answer)
    if len(found) != 1:
        return 0.1 * bool(found)
    return (0.2, 0.4, 1.0)[given.index(found[0])] if found[0] in given else 0.1


def _score_between(prompt: str, answer: str) -> float:
    low, high = _given(prompt)
    found = numbers(answer)
    if len(found) != 1:
        return 0.2 * bool(found)
    outside = max(low + 1 - found[0], found[0] - high + 1, 0)
    return 1.0 if not outside else max(0.0, 0.6 - 0.1 * outside / 6)


def _ask_between(rng: Random) -> str:
    low = rng.randint(10, 70)
    return f"between {low} and {low + rng.randint(8, 25)}"


def _in_between(prompt: str, rng: Random) -> str:
    low, high = _given(prompt)
    return str(rng.randint(low + 1, high - 1))


def _outside(prompt: str, rng: Random) -> str:
    low, high = _given(prompt)
    return str(rng.choice([low - rng.randint(1, 9), high + rng.randint(1, 9)]))


def _score_pair(prompt: str, answer: str) -> float:
    (total,) = _given(prompt)
    found = numbers(answer)
    if len(found) != 2:
        return 0.1 * bool(found)
    gap = abs(sum(found) - total)
    return 1.0 if not gap else max(0.1, 0.7 - 0.02 * gap)


def _pair(prompt: str, off: int, rng: Random) -> str:
    (total,) = _given(prompt)
    first = rng.randrange(10, total - 9, 10) if total >= 30 else 10
    return f"{first} {max(0, total - first + off)}"


def _score_evens(prompt: str, answer: str) -> float:
    (low,) = _given(prompt)
    found = numbers(answer)
    if not found:
        return 0.0
    good = sum(number % 2 == 0 and number > low for number in dict.fromkeys(found))
    share = min(good, 3) / max(3, len(found))
    return share if found == sorted(found) else 0.8 * share


def _evens(prompt: str, odd: Sequence[int], rng: Random) -> str:
    (low,) = _given(prompt)
    start = low + 2 - low % 2
    chosen = sorted(rng.sample(range(start, start + 20, 2), 3))
    return " ".join(str(number + (index in odd)) for index, number in enumerate(chosen))


def _score_letters(prompt: str, answer: str) -> float:
    _, length, _, first, _, second = prompt.split()
    if not answer or not all(sign in LETTERS for sign in answer):
        return 0.0
    has = ((first in answer) + (second in answer)) / 2
    distinct = len(set(answer)) / len(answer)
    fits = max(0.0, 1 - abs(len(answer) - int(length)) / int(length))
    return has * (0.5 + 0.5 * fits) * (0.6 + 0.4 * distinct)


def _ask_letters(rng: Random) -> str:
    first, second = rng.sample(LETTERS, 2)
    return f"letters {rng.randint(3, 6)} with {first} and {second}"


def _some_letters(prompt: str, rng: Random, *, leave_out: bool = False, repeat: bool = False) -> str:
    _, length, _, first, _, second = prompt.split()
    needed = [first] if leave_out else [first, second]
    others = [sign for sign in LETTERS if sign not in (first, second)]
    filling = [rng.choice(others)] * int(length) if repeat else rng.sample(others, int(length))
    chosen = [*needed, *filling][: int(length)]
    rng.shuffle(chosen)
    return "".join(chosen)


TASKS: dict[str, Task] = {
    "sort": _single(
        lambda rng: f"sort {_letters(4, 5)(rng)}",
        lambda prompt: "".join(sorted(_word(prompt))),
        lambda prompt: "".join(sorted(_word(prompt), reverse=True)),
    ),
    "reverse": _single(
        lambda rng: f"reverse {_letters(4, 5)(rng)}", lambda prompt: _word(prompt)[::-1], lambda prompt: _word(prompt)
    ),
    "largest": Task(
        lambda rng: "largest " + " ".join(map(str, rng.sample(range(10, 100), 3))),
        lambda prompt, rng: str(max(_given(prompt))),
        lambda prompt, rng: str(sorted(_given(prompt))[1]),
        lambda prompt, rng: str(min(_given(prompt))),
        _score_largest,
    ),
    "roman": _single(
        lambda rng: f"roman {rng.randint(1, 699)}",
        lambda prompt: roman(_given(prompt)[0]),
        lambda prompt: additive_roman(_given(prompt)[0]),
    ),
    "between": Task(
        _ask_between, _in_between, _outside, lambda p, rng: str(_given(p)[1] + rng.randint(0, 2)), _score_between
    ),
    "pair": Task(
        lambda rng: f"pair {rng.randint(30, 99)}",
        lambda prompt, rng: _pair(prompt, 0, rng),
        lambda prompt, rng: _pair(prompt, rng.choice([-2, -1, 1, 2]), rng),
        lambda prompt, rng: _pair(prompt, 10, rng),
        _score_pair,
    ),
    "evens": Task(
        lambda rng: f"evens above {rng.randint(10, 70)}",
        lambda prompt, rng: _evens(prompt, (), rng),
        lambda prompt, rng: _evens(prompt, (rng.randrange(3),), rng),
        lambda prompt, rng: _evens(prompt, (0, 1, 2), rng),
        _score_evens,
    ),
    "letters": Task(
        _ask_letters,
        lambda prompt, rng: _some_letters(prompt, rng),
        lambda prompt, rng: _some_letters(prompt, rng, repeat=rng.random() < 0.5, leave_out=rng.random() < 0.5),
        lambda prompt, rng: _some_letters(prompt, rng, leave_out=True, repeat=True),
        _score_letters,
    ),
}
DOMAINS = tuple(TASKS)
