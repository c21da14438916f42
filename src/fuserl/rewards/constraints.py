"""The verifiable instructions of IFEval (arXiv 2311.07911): each a function `follows(text, **wanted) -> bool`.

Written anew from the paper's definitions and the published verdicts, which they are compared with in docs/verifiers.md.
Texts are written by models, maybe to do harm: every function takes time linear in the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

Rule = Callable[..., bool]

WORD = re.compile(r"\w+")
TOKEN = re.compile(r"[^\W_]+(?:[-./&’'][^\W_]+)*")
SENTENCE_END = re.compile(
    r"(?<![.!?])[.!?]++[\"'”’)\]*_]*+(?=\s|$)"
)  # from the first sign of a run, without going back
LAST_WORD = re.compile(r"[\w.]*$")
ABBREVIATIONS = {
    *(
        "mr",
        "mrs",
        "ms",
        "dr",
        "st",
        "prof",
        "jr",
        "sr",
        "vs",
        "etc",
        "inc",
        "ltd",
        "co",
        "rev",
        "gen",
        "sen",
        "rep",
        "gov",
    ),
    *("e.g", "i.e", "u.s", "p.s", "p.p.s", "a.m", "p.m"),
}
PROMISED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")  # of `constrained_response`
READ = 2000  # characters from which a language is known


def _is(number: int, relation: str, wanted: int) -> bool:
    """`less than` or `at least`, IFEval's two relations."""
    return {"less than": number < wanted, "at least": number >= wanted}[relation]


def number_words(text: str, *, relation: str, num_words: int) -> bool:
    """Runs of letters, digits and underscores."""
    return _is(len(WORD.findall(text)), relation, num_words)


def number_sentences(text: str, *, relation: str, num_sentences: int) -> bool:
    """See `sentences`."""
    return _is(sentences(text), relation, num_sentences)


def sentences(text: str) -> int:
    """How many: they end with `.`, `!` or `?` before a space or the end, but not after an abbreviation or an initial.

    >>> sentences("Dr. A. Smith paid 3.50. Did he? Yes!"), sentences("no end")
    (3, 1)
    """
    ends = [found for found in SENTENCE_END.finditer(text) if not _abbreviated(text, found)]
    return len(ends) + bool(text[ends[-1].end() :].strip() if ends else text.strip())


def _abbreviated(text: str, end: re.Match[str]) -> bool:
    if end[0] != ".":
        return False
    word = LAST_WORD.search(text, max(0, end.start() - 20), end.start())[0]  # type: ignore[index]
    return word.lower() in ABBREVIATIONS or (len(word) == 1 and word.isalpha() and word.isupper() and word != "I")


def number_paragraphs(text: str, *, num_paragraphs: int) -> bool:
    """Separated by `***`; none empty, but before the first and after the last separator."""
    parts = [bool(part.strip()) for part in text.split("***")]
    inner = parts[1:-1] if len(parts) > 1 else []
    return all(inner) and sum(parts) == num_paragraphs


def nth_paragraph_first_word(text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs are separated by an empty line; case and punctuation of the word do not matter."""
    parts = text.split("\n\n")
    filled = sum(bool(part.strip()) for part in parts)
    if filled != num_paragraphs or not 1 <= nth_paragraph <= filled or not parts[nth_paragraph - 1].strip():
        return False
    word = parts[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"').lower()
    return re.split(r"[.,?!'\"]", word, maxsplit=1)[0] == first_word.lower()


def keywords_exist(text: str, *, keywords: Sequence[str]) -> bool:
    """All somewhere in the text, in any case."""
    return all(keyword.lower() in text.lower() for keyword in keywords)


def keyword_frequency(text: str, *, relation: str, keyword: str, frequency: int) -> bool:
    """Occurrences in any case, within words too."""
    return _is(text.lower().count(keyword.strip().lower()), relation, frequency)


def forbidden_words(text: str, *, forbidden_words: Sequence[str]) -> bool:
    """None stands in the text as a word, in any case."""
    return not any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in forbidden_words)


def letter_frequency(text: str, *, letter: str, let_relation: str, let_frequency: int) -> bool:
    """Occurrences of a sign, in any case."""
    return _is(text.lower().count(letter.lower()), let_relation, let_frequency)


def response_language(text: str, *, language: str) -> bool:
    """The whole text is in one language, named by its ISO 639-1 code."""
    return language_of(text) == language


def language_of(text: str) -> str:
    """The language of a text, by py3langid; capitals say nothing."""
    return str(_identifier().classify(text[:READ].lower())[0])


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE)


def number_placeholders(text: str, *, num_placeholders: int) -> bool:
    """At least so many in square brackets, each on one line."""
    return sum(_closed(line, "[", "]") for line in text.split("\n")) >= num_placeholders


def _closed(line: str, opens: str, closes: str) -> int:
    """Pairs of brackets, from each opening one to the next closing."""
    number, place = 0, 0
    while (start := line.find(opens, place)) >= 0 and (end := line.find(closes, start)) >= 0:
        number, place = number + 1, end + 1
    return number


def postscript(text: str, *, postscript_marker: str) -> bool:
    """The marker, spaces within it allowed, in any case."""
    spaced = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return re.search(spaced.get(postscript_marker, re.escape(postscript_marker.lower())), text.lower()) is not None


def number_bullet_lists(text: str, *, num_bullets: int) -> bool:
    """Exactly so many lines that begin with `* ` or `-`."""
    lines = [line.lstrip() for line in text.split("\n")]
    return sum(line.startswith("-") or (line.startswith("*") and line[1:2] != "*") for line in lines) == num_bullets


def constrained_response(text: str) -> bool:
    """One of the three answers that are allowed."""
    return any(answer in text for answer in PROMISED)


def number_highlighted_sections(text: str, *, num_highlights: int) -> bool:
    """At least so many `*highlighted*` parts, each on one line; `**such**` counts too."""
    single = [part for part in re.findall(r"\*([^\n*]*)\*", text) if part.strip()]
    double = [part for part in re.findall(r"\*\*([^\n*]*)\*\*", text) if part.strip()]
    return len(single) + len(double) >= num_highlights


def multiple_sections(text: str, *, section_spliter: str, num_sections: int) -> bool:
    """At least so many headings: the word and a number."""
    return len(re.findall(rf"{re.escape(section_spliter)}\s?\d+", text)) >= num_sections


def json_format(text: str) -> bool:
    """The whole text is JSON, in a code fence or not."""
    text = re.sub(r"^```(?:json|Json|JSON)?|```$", "", text.strip())
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def title(text: str) -> bool:
    """Something stands in `<<double angular brackets>>`, on one line."""
    return any(line[line.find("<<") : line.rfind(">>")].strip("<> \t") for line in text.split("\n") if "<<" in line)


def two_responses(text: str) -> bool:
    """Two different answers, separated by `******`."""
    parts = [part.strip() for part in text.split("******")]
    filled = [part for part in parts if part]
    return all(parts[1:-1]) and len(filled) == 2 and filled[0] != filled[1]


def repeat_prompt(text: str, *, prompt_to_repeat: str) -> bool:
    """The answer begins with the request, in any case."""
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def end_checker(text: str, *, end_phrase: str) -> bool:
    """The answer ends with the phrase, in any case."""
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def quotation(text: str) -> bool:
    """The whole answer stands in double quotation marks."""
    text = text.strip()
    return len(text) > 1 and text.startswith('"') and text.endswith('"')


def capital_word_frequency(text: str, *, capital_relation: str, capital_frequency: int) -> bool:
    """Words in capitals; a hyphenated one counts once."""
    return _is(sum(word.isupper() for word in TOKEN.findall(text)), capital_relation, capital_frequency)


def english_capital(text: str) -> bool:
    """English, in capitals alone."""
    return text.isupper() and language_of(text) == "en"


def english_lowercase(text: str) -> bool:
    """English, without capitals."""
    return text.islower() and language_of(text) == "en"


def no_comma(text: str) -> bool:
    """There is none."""
    return "," not in text


RULES: dict[str, Rule] = {
    "keywords:existence": keywords_exist,
    "keywords:frequency": keyword_frequency,
    "keywords:forbidden_words": forbidden_words,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": response_language,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:number_words": number_words,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": number_bullet_lists,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:number_highlighted_sections": number_highlighted_sections,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:json_format": json_format,
    "detectable_format:title": title,
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": repeat_prompt,
    "startend:end_checker": end_checker,
    "startend:quotation": quotation,
    "change_case:capital_word_frequency": capital_word_frequency,
    "change_case:english_capital": english_capital,
    "change_case:english_lowercase": english_lowercase,
    "punctuation:no_comma": no_comma,
}


def readings(text: str) -> list[str]:
    """The text as it is, and as IFEval's loose verdicts read it: without the first or last line, without asterisks."""
    lines = text.split("\n")
    cut = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*cut, *(part.replace("*", "") for part in cut)]


def follows(rule: Rule, wanted: dict[str, Any], texts: Sequence[str]) -> bool:
    """Any of the texts that is not empty follows the rule.

    Raises:
        TypeError, KeyError: `wanted` is not what the rule asks for.
    """
    return any(rule(text, **wanted) for text in texts if text.strip())
