"""Style of answers: what is counted, how answers differ, that no text is slow to read."""

from __future__ import annotations

import numpy as np
import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from fuserl.errors import FuserlError
from fuserl.evaluation.benchmarks.style import (
    Style,
    by_count,
    by_density,
    rows,
    standardised,
    style_of,
    tokens,
    without_code,
    words_and_signs,
)

ANSWER = """# Title
## Part one
#no header
Some **bold** and __also__ words, 2 * 3 ** 4.

- one
* two
  + three
1. first
12. second
-not a list

```python
# no header
- no item
**no bold**
```
###### six
"""


def test_marks_are_counted_outside_code_by_kind():
    found = style_of(ANSWER, words_and_signs)
    assert found.headers == {"h1": 1, "h2": 1, "h3": 0, "h4": 0, "h5": 0, "h6": 1}
    assert found.lists == {"ordered": 2, "unordered": 3}
    assert found.bold == {"**": 1, "__": 1}
    assert found.tokens == words_and_signs(ANSWER), "code is part of the length"
    assert found.row() == (found.tokens, 3, 5, 2)
    assert found.plain()["header_count"]["h6"] == 1


@pytest.mark.parametrize(
    ("text", "left"),
    [("a```b```c", "ac"), ("a```b", "a```b"), ("```a``````b```", ""), ("", ""), ("``a``", "``a``"), ("a```b```c```d", "ac```d")],
)  # fmt: skip
def test_code_is_taken_out_where_its_fence_is_closed(text, left):
    assert without_code(text) == left


@pytest.mark.parametrize(
    ("text", "number"),
    [("", 0), ("  \n", 0), ("one two", 2), ("it's", 3), ("你好 world", 3), ("naïve 3.14", 4), ("a_b", 1)],
)
def test_words_signs_and_letters_of_scripts_without_spaces(text, number):
    assert words_and_signs(text) == number


def line_by_line(told: str) -> tuple[int, int, int]:
    """(headers, ordered, unordered) without patterns."""
    *whole, last = told.split("\n")
    headers = ordered = unordered = 0
    for line in [*(line + "\n" for line in whole), last]:
        bare = line.lstrip("#")
        headers += 1 <= len(line) - len(bare) <= 6 and bare[:1].isspace()
        bare = line.lstrip(" ")
        unordered += bare[:1] in ("-", "*", "+") and bare[1:2].isspace()
        behind = bare.lstrip("1")
        ordered += behind != bare and behind[:1] == "." and behind[1:2].isspace()
    return headers, ordered, unordered


@given(text=st.text(alphabet=" ab#*_-+1.\n`", max_size=60))
def test_counts_are_those_of_a_line_by_line_reader(text):
    found = style_of(text, words_and_signs)
    counted = sum(found.headers.values()), found.lists["ordered"], found.lists["unordered"]
    assert counted == line_by_line(without_code(text))


HOSTILE = {
    "newlines": "\n" * 200_000,
    "spaces": " " * 200_000,
    "spaces and lines": (" " * 100 + "\n") * 2_000,
    "stars": "*" * 200_000,
    "open bold": "**a " * 50_000,
    "half bold": "**a*" * 50_000,
    "lines": "_" * 200_000,
    "open lines": "__a" * 60_000,
    "ticks": "`" * 200_000,
    "open fences": "```a`` " * 30_000,
    "hashes": "#" * 200_000,
    "digits": "1" * 200_000,
    "digits and dots": "1." * 100_000,
    "nothing": "\0" * 200_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_no_text_is_slow_to_read(text):
    """In time that grows with its square, each of these would take hours."""
    found = style_of(5 * text, words_and_signs)
    assert 0 <= found.row()[2] <= len(5 * text)


LOOKS = st.tuples(*[st.integers(0, 500)] * 4)


@given(pairs=st.lists(st.tuples(LOOKS, LOOKS), min_size=1, max_size=20))
@pytest.mark.parametrize("differences", [by_count, by_density])
def test_differences_are_shares_that_change_sign_with_the_sides(differences, pairs):
    ours, theirs = (np.array([pair[side] for pair in pairs], dtype=float) for side in (0, 1))
    found = differences(ours, theirs)
    np.testing.assert_allclose(differences(theirs, ours), -found)
    assert (np.abs(found) <= 1).all()
    assert (differences(ours, ours) == 0).all()
    spread = standardised(found)
    np.testing.assert_allclose(standardised(-found), -spread)
    assert ((spread == 0) | (np.sign(spread) == np.sign(found))).all(), "0 stays: they look the same"
    np.testing.assert_allclose(spread.std(axis=0)[found.std(axis=0) > 1e-12], 1.0)


def test_the_formulas_of_both_versions():
    ours, theirs = np.array([[30.0, 2.0, 0.0, 6.0]]), np.array([[10.0, 1.0, 3.0, 0.0]])
    np.testing.assert_allclose(by_count(ours, theirs), [[20 / 41, 1 / 4, -3 / 4, 6 / 7]])
    headers = (2 / 30 - 1 / 10) / (2 / 30 + 1 / 10 + 1)
    np.testing.assert_allclose(by_density(ours, theirs), [[1 / 2, headers, -0.3 / 1.3, 0.2 / 1.2]])


def test_rows_of_styles():
    style = Style(5, {"h1": 1, "h2": 2}, {"ordered": 3, "unordered": 0}, {"**": 1, "__": 1})
    assert rows([style, style]).tolist() == [[5, 3, 3, 2]] * 2
    assert rows([]).shape == (0, 4)


def test_tokens_need_the_encoding_s_file(monkeypatch):
    def nowhere(name: str):
        raise OSError("no network")

    monkeypatch.setattr(tiktoken, "get_encoding", nowhere)
    with pytest.raises(FuserlError, match="cannot be had"):
        tokens("text", encoding="an encoding")
