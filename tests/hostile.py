"""Texts that would act if they were taken for anything but text."""

from __future__ import annotations

ACT = "window.hacked=1"
CORPUS = (
    f"<script>{ACT}</script>",
    f"</script><script>{ACT}</script>",
    f"<img src=x onerror={ACT}>",
    f"\"><img src=x onerror='{ACT}'>",
    f"' onmouseover='{ACT}' x='",
    f'<a href="javascript:{ACT}">press</a>',
    f"javascript:{ACT}",
    "<b>bold</b><br><i>x</i><sup>2</sup>",
    f"<svg/onload={ACT}>",
    f"<!--<script>{ACT}//",
    f"]]></title></style></textarea><script>{ACT}</script>",
    f"%{{x}} ${{{ACT}}} {{{{{ACT}}}}}",
    f"line\u2028{ACT}\u2029end",
    f"&lt;script&gt;{ACT}&lt;/script&gt;",
    f"\\u003cscript\\u003e{ACT}",
    f"<style onload={ACT}>*{{display:none}}</style>",
    "$x^2 \\href{javascript:1}{y}$",
    "=cmd|' /C calc'!A0",
    "+1+cmd|'x'!A1",
    "-2+3",
    "@SUM(A1)",
    "\t=1+1",
    "\x1b[2J\x1b]0;title\x07",
    "[bold red]markup[/]",
    '{"a": "</script>"}',
)
