"""A rule for answers in another language than was asked for.

Chinese, Japanese and Korean are known by their script; other languages by py3langid, whose model is part of its package.
What is no prose (code, formulas, addresses) is not read, and where little is left, or the model is not sure, nothing is
said: an answer is dropped only if both its language and the wanted one are known.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

from fuserl.curation.texts import excerpt, prompt_text
from fuserl.errors import FuserlError
from fuserl.records.schema import PromptGroup, Response

HAN, KANA, HANGUL = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff", r"\u3040-\u30ff", r"\uac00-\ud7af"
FEW = 4  # letters of a script that is one language's own; of others, `least` letters are needed
READ = 250  # characters of prose that the model reads; more make it slower and hardly better
_LETTERS = re.compile(r"[^\W\d_]")
_SCRIPTS = {name: re.compile(f"[{signs}]") for name, signs in (("zh", HAN), ("ja", KANA), ("ko", HANGUL))}
_NO_PROSE = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$.*?\$\$|\\\[.*?\\\]|\\\(.*?\\\)|\$[^$\n]*\$|<[^<>\n]*>", re.DOTALL
)
_NO_WORD = re.compile(r"[{}=_\\/<>|^]")  # in names, addresses and code that is not marked as such


class WrongLanguage:
    """An answer in a language that is none of those wanted.

    Wanted are the languages listed for the prompt's domain, or else those that the prompt is written in. A prompt that
    names a language, as translation tasks do, wants any.

    Args:
        domains: domain -> codes of the languages wanted, as ISO 639 has them.
        alike: languages that are taken for the first of them, because they are easily mistaken for each other.
        names: regular expression of what a prompt says that asks for another language; case does not matter.
        least: letters of prose in a text, for its language to be known.
        sure: confidence that the model must have, above 0 and below 1.

    Raises:
        FuserlError: a language that the model does not know, or an expression that is none.
    """

    def __init__(
        self, name: str, domains: Mapping[str, Collection[str]], alike: Iterable[Sequence[str]], names: str,
        least: int, sure: float,
    ) -> None:  # fmt: skip
        self.name, self._least, self._sure = name, least, sure
        self._same = {code: codes[0] for codes in alike for code in codes}
        self._domains = {domain: {self._same.get(code, code) for code in codes} for domain, codes in domains.items()}
        try:
            self._names = re.compile(names, re.IGNORECASE)
        except re.error as error:
            raise FuserlError(
                f"the pattern is no regular expression ({error})", where=f"`names` of the rule `{name}`", hint="mend it"
            ) from error
        mentioned = {*self._same} | {code for codes in domains.values() for code in codes}
        if mentioned and (unknown := sorted(mentioned - {*_identifier().labels})):
            raise FuserlError(
                f"there is no language `{unknown[0]}`",
                where=f"`domains` or `alike` of the rule `{name}`",
                hint=f"the model knows {', '.join(sorted(_identifier().labels))}",
            )
        self._of_prompt = lru_cache(1)(self._in_prompt)

    def __call__(self, group: PromptGroup, response: Response) -> str | None:
        """Why the response goes, None: it stays."""
        wanted = self._domains.get(group.domain) or self._of_prompt(prompt_text(group))
        if not wanted:
            return None
        found = self.language(response.text)
        if found is None or found in wanted:
            return None
        return f"in `{found}`, wanted is {' or '.join(sorted(wanted))}: {excerpt(response.text)}"

    def language(self, text: str) -> str | None:
        """The language of a text's prose, None where it is not sure."""
        return self._language(prose(text))

    def _language(self, text: str) -> str | None:
        text = text[: 4 * READ]
        letters = len(_LETTERS.findall(text))
        found = {name: len(script.findall(text)) for name, script in _SCRIPTS.items()}
        if sum(found.values()) >= max(FEW, letters / 2):
            japanese = found["ja"] > 0.1 * sum(found.values())
            name = "ja" if japanese else max(found, key=lambda each: found[each])
            return self._same.get(name, name)
        if letters < self._least:
            return None
        ranked = _identifier().rank(text[:READ])
        name = self._same.get(ranked[0][0], ranked[0][0])
        sure = sum(share for code, share in ranked if self._same.get(code, code) == name)
        return name if sure >= self._sure and name != "zxx" else None

    def _in_prompt(self, prompt: str) -> frozenset[str]:
        """The languages of a prompt and of its paragraphs; none where it asks for another, or any is not known."""
        if self._names.search(prompt):
            return frozenset()
        text = prose(prompt)
        whole = self._language(text)
        if whole is None:
            return frozenset()
        scripts = {name for name, script in _SCRIPTS.items() if script.search(prompt)}
        if "ja" in scripts:
            scripts.discard("zh")  # Japanese is written with Chinese characters too
        parts = (self._language(part) for part in text.split("\n"))
        return frozenset({whole, *(self._same.get(name, name) for name in scripts), *(part for part in parts if part)})


def prose(text: str) -> str:
    """A text without code, formulas, tags and addresses; lines stay lines.

    >>> prose("Use `sum(x)` here:\\n```\\nsum(x)\\n```\\nIt costs $O(n)$ steps.")
    'Use here:\\nIt costs steps.'
    """
    lines = (
        " ".join(word for word in line.split() if not _NO_WORD.search(word))
        for line in _NO_PROSE.sub(" ", text[: 16 * READ]).splitlines()
    )
    return "\n".join(line for line in lines if line)


@cache
def _identifier() -> Any:
    """The model: three seconds, once."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
