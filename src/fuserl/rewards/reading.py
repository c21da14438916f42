"""From an answer's text to mathematics that math-verify reads: what people and models write beside LaTeX."""

from __future__ import annotations

import re

REPLACED = str.maketrans(
    {
        **{"−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": "/", "π": r"\pi ", "∞": r"\infty "},
        **{"²": "^{2}", "³": "^{3}", "½": r"\frac{1}{2}", "\u00a0": " ", "\u202f": " ", "≤": r"\leq ", "≥": r"\geq "},
        **dict.fromkeys("€£¥₹", ""),
    }
)
ROOT = re.compile(r"√\s*(?:\(([^()]{1,200})\)|(\d+|[a-zA-Z]))|\bsqrt\s*\(([^()]{1,200})\)")
DELIMITERS = re.compile(r"^(?:\$\$?|\\\(|\\\[)\s*|\s*(?:\$\$?|\\\)|\\\])$")
DEGREES = re.compile(r"\s*(?:°|\^\s*\{?\s*\\circ\s*\}?)(?:\s*[CF]\b)?")
PERCENT = re.compile(r"(?<!\\)%")
COMMAND = re.compile(r"\\(?:text|mathrm|textbf|mathbf|operatorname)\s*\{[^{}]{0,200}\}|\\[a-zA-Z]+")
WORD = re.compile(r"(?<![\w)}^])[^\W\d_]{2,}(?![\w^(])|(?<=\d)(?:[kcm]m|[km]g|m[lL]|lbs?|ft|oz|hrs?|[ap]m|mph)\b")
KNOWN = {"sqrt", "pi", "sin", "cos", "tan", "cot", "log", "ln", "exp", "inf", "or", "and", "mod", "dx", "dy", "dt"}
NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?")


def tidy(text: str) -> str:
    """An answer without delimiters, currency and marks, its signs in LaTeX.

    >>> tidy("**$1,250.**"), tidy("2√3"), tidy("sqrt(2)/2"), tidy("$x^2$"), tidy("60%"), tidy("-10°F")
    ('1,250', '2\\\\sqrt{3}', '\\\\sqrt{2}/2', 'x^2', '60\\\\%', '-10')
    """
    text = ROOT.sub(lambda found: rf"\sqrt{{{found[1] or found[2] or found[3]}}}", text.strip().strip("*`").strip())
    text = DEGREES.sub("", text).translate(REPLACED).strip().rstrip(".")
    if text.count("$") % 2:
        text = text.replace(r"\$", "").replace("$", "")
    elif text.count("$") <= 2 or text.startswith((r"\(", r"\[")):
        text = DELIMITERS.sub("", DELIMITERS.sub("", text))
    return PERCENT.sub(r"\\%", text.replace(r"\$", "")).strip()


def words(text: str) -> list[str]:
    """Words of a natural language: two letters or more that are no LaTeX command and no product; and glued units.

    >>> words("10 miles per hour"), words("10km"), words("12-10d"), words("2ab+c"), words("3 dx")
    (['miles', 'per', 'hour'], ['km'], [], [], [])
    """
    return [word for word in WORD.findall(COMMAND.sub(" ", text)) if word.lower() not in KNOWN]


def is_number(text: str) -> bool:
    """A plain number, written out.

    >>> is_number("1,250"), is_number("-3.5"), is_number("2x"), is_number("")
    (True, True, False, False)
    """
    return bool(text) and NUMBER.fullmatch(text) is not None
