"""The language of an answer: known where it can be, never guessed, and dropped only where it was not wanted."""

from __future__ import annotations

import kit
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_files import group, real_groups, rule_of

from fuserl.curation.language import prose
from fuserl.errors import FuserlError

TEXTS = {
    "en": "The weather was so bad last week that nobody in the village wanted to leave the house for more than an hour.",
    "de": "Das Wetter war letzte Woche so schlecht, dass niemand im Dorf das Haus länger als eine Stunde verlassen wollte.",
    "fr": "Le temps était si mauvais la semaine dernière que personne dans le village ne voulait quitter la maison.",
    "es": "El tiempo era tan malo la semana pasada que nadie en el pueblo quería salir de casa más de una hora.",
    "ru": "На прошлой неделе погода была такой плохой, что никто в деревне не хотел выходить из дома.",
    "pt": "O tempo estava tão ruim na semana passada que ninguém na aldeia queria sair de casa por mais de uma hora.",
    "zh": "上周天气太糟糕了，村里没有人愿意离开家超过一个小时。",
    "ja": "先週は天気がとても悪かったので、村の誰も一時間以上家を出たがりませんでした。",
    "ko": "지난주에는 날씨가 너무 나빠서 마을 사람 누구도 한 시간 이상 집을 나가려고 하지 않았다.",
}
CODE = "```python\ndef quadrat(zahl):\n    # das Ergebnis der Multiplikation wird sofort zurückgegeben, ohne Umwege\n    return zahl * zahl\n```"


@pytest.fixture(scope="module")
def rule():
    return rule_of("wrong_language")


@pytest.mark.parametrize("code", TEXTS)
def test_a_paragraph_of_prose_is_known(rule, code):
    assert rule.language(TEXTS[code]) == code
    assert rule.language(f"{CODE}\n{TEXTS[code]}\n$$\\int x dx$$") == code


@pytest.mark.parametrize("asked", TEXTS)
@pytest.mark.parametrize("answered", TEXTS)
def test_an_answer_is_dropped_if_its_language_is_not_the_prompts(rule, asked, answered):
    one = group(TEXTS[answered], prompt=TEXTS[asked])
    why = rule(one, one.responses[0])
    assert (why is None) == (asked == answered)
    assert why is None or f"`{answered}`" in why


@pytest.mark.parametrize(
    "text",
    ["", "42", "OK", "Yes, exactly.", "x^2 + y^2 = r^2", CODE, "\\frac{1}{2}", "https://example.org/eine/lange/deutsche/adresse", "是的",
     "SELECT name FROM users WHERE id = 3;", "🙂" * 50, "aaaa " * 30, "foo_bar baz_qux " * 10],
)  # fmt: skip
def test_what_cannot_be_known_is_not_guessed(rule, text):
    one = group(text, prompt=TEXTS["fr"])
    assert rule(one, one.responses[0]) is None


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        (f"Translate into German: {TEXTS['en']}", TEXTS["de"]),
        (f"{TEXTS['en']} Say that again in French, please.", TEXTS["fr"]),
        (f"请把这句话翻译成英文：{TEXTS['zh']}", TEXTS["en"]),
        (f"Please correct the following text of mine for the newspaper:\n{TEXTS['de']}", TEXTS["de"]),
        (f"What does this mean to the people who live there, {TEXTS['zh']}", TEXTS["zh"]),
        ("Hm?", TEXTS["de"]),
    ],
)
def test_a_prompt_may_want_another_language_than_its_own(rule, prompt, answer):
    one = group(answer, prompt=prompt)
    assert rule(one, one.responses[0]) is None


def test_a_domain_wants_its_languages_whatever_the_prompt_says(rule):
    for prompt in (TEXTS["zh"], TEXTS["en"], "?", "用英文回答"):
        verdicts = [
            rule(one, one.responses[0]) is None
            for one in (group(t, prompt=prompt, domain="chinese") for t in TEXTS.values())
        ]
        assert verdicts == [code == "zh" for code in TEXTS]
    many = rule_of("wrong_language", domains={"europe": ["de", "fr"]})
    kept = [
        code for code, text in TEXTS.items() if many(group(text, domain="europe"), group(text).responses[0]) is None
    ]
    assert kept == ["de", "fr"]


def test_code_formulas_tags_and_addresses_are_no_prose():
    text = f"One.\n{CODE}\nTwo `x y` $a b$ \\(c d\\) \\[e\nf\\] $$g\nh$$ <br> http://a.b/c snake_case {{j}} three.\n```\nopen end"
    assert prose(text) == "One.\nTwo three."


@given(st.text())
@settings(max_examples=50)
def test_any_text_can_be_judged(text):
    rule = rule_of("wrong_language")
    assert rule.language(text) is None or isinstance(rule.language(text), str)
    assert prose(prose(text)) == prose(text) or "`" in text or "$" in text or "\\" in text or "<" in text


@pytest.mark.parametrize("wrong", [{"domains": {"x": ["english"]}}, {"alike": [["en", "klingon"]]}, {"names": "("}])
def test_unknown_languages_are_told(wrong):
    with pytest.raises(FuserlError):
        rule_of("wrong_language", **wrong)


def test_real_answers_that_are_dropped_were_read_and_are_in_another_language(rule):
    """2,444 answers to English prompts; dropped are two that are Chinese, and a piece of code with Russian comments."""
    sources = {
        "alpaca_multi": ("Qwen-14B-Chat",),
        "humaneval_multi": ("codegen-16B-mono",),
    }
    found = {}
    for name, wanted in sources.items():
        answers = [
            (one, r) for one in real_groups(kit.shared_data() / name) for r in one.responses if r.source in wanted
        ]
        whys = [rule(one, response) for one, response in answers]
        found[name] = (len(answers), sorted(why.split(",")[0] for why in whys if why))
    assert found == {"alpaca_multi": (805, ["in `zh`", "in `zh`"]), "humaneval_multi": (1639, ["in `ru`"])}
