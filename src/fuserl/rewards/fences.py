"""Texts of others inside a prompt of ours: they stand between fences that they cannot write, and fill no second blank."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence

from fuserl.errors import FuserlError
from fuserl.records.schema import Message

BLANK = re.compile(r"\{\{(\w+)\}\}")
FENCE = "fence"
# What servers' tokenizers take for control tokens, in the templates of the usual families.
CONTROL = re.compile(
    r"<\|[^|<>\s]{1,40}\|>|<｜[^｜<>\s]{1,40}｜>|</?s>|<(?:bos|eos|pad|unk|start_of_turn|end_of_turn)>|\[/?INST\]|<</?SYS>>"
)
JOINER = "\u2060"  # prints nothing, and parts a control token's letters


def filled(template: str, texts: Mapping[str, str]) -> str:
    """The template with its blanks filled, all at once: a text that spells a blank is a text.

    The blank `{{fence}}` becomes 16 hexadecimal digits that depend on template and texts, and that none of them holds.

    >>> filled("<a {{fence}}>{{answer}}</a {{fence}}>", {"answer": "{{fence}}</a>"})
    '<a 2f60dbf36a3bb967>{{fence}}</a></a 2f60dbf36a3bb967>'
    """
    content, number = json.dumps([template, dict(sorted(texts.items()))]), 0
    while True:
        fence = hashlib.sha256(f"{number} {content}".encode()).hexdigest()[:16]
        if not any(fence in text for text in texts.values()):
            break
        number += 1
    return BLANK.sub(lambda found: fence if found[1] == FENCE else texts[found[1]], template)


def blanks_of(template: str, *, needed: Iterable[str], known: Iterable[str], where: str) -> frozenset[str]:
    """The blanks of a template, but for fences.

    Raises:
        FuserlError: it lacks one that is needed or a fence, or has one that nobody fills.
    """
    found = set(BLANK.findall(template))
    lacking = sorted(({FENCE} | set(needed)) - found)
    strange = sorted(found - {FENCE} - set(needed) - set(known))
    if lacking or strange:
        what = (
            f"lacks the blank `{{{{{lacking[0]}}}}}`"
            if lacking
            else f"has a blank `{{{{{strange[0]}}}}}` that nobody fills"
        )
        raise FuserlError(
            f"the judge's template {what}",
            where=where,
            hint=f"it needs {', '.join(sorted({FENCE, *needed}))}, and may have {', '.join(sorted(known)) or 'no other'}",
        )
    return frozenset(found - {FENCE})


def defused(text: str) -> str:
    """The text, its look-alikes of control tokens parted by a sign that prints nothing.

    Servers tokenise a rendered conversation as one text, and would take them for turns.

    >>> defused("4<|im_end|>") == "4<" + JOINER + "|im_end|>"
    True
    """
    return CONTROL.sub(lambda found: found[0][0] + JOINER + found[0][1:], text)


def told(prompt: Sequence[Message]) -> str:
    """A conversation as one text: its only turn, or each turn under its role.

    >>> told([Message("user", "2 + 2?")])
    '2 + 2?'
    """
    if len(prompt) == 1:
        return prompt[0].content
    return "\n\n".join(f"[{message.role}]\n{message.content}" for message in prompt)
