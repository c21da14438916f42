"""FuseLLM's and FuseChat's alignment, written down literally from the papers' steps: slow, and the truth for the tests.

Nothing of the library is used. Loops are the formulas' own; where the text leaves something open, a comment says what
was chosen, and docs/alignment.md says it too.
"""

from __future__ import annotations

import math

INFINITE = float("inf")


def edit_distance(a: str, b: str) -> int:
    """Levenshtein: the fewest insertions, deletions and replacements."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (x != y)))
    return row[-1]


def warp(source: list[str], target: list[str], distance=edit_distance) -> list[tuple[int, int]]:
    """The path of dynamic time warping: diagonal before left before up where several are least."""
    n, m = len(source), len(target)
    table = [[INFINITE] * (m + 1) for _ in range(n + 1)]
    table[0][0] = 0
    for i in range(n):
        for j in range(m):
            cost = distance(source[i], target[j])
            table[i + 1][j + 1] = cost + min(table[i][j + 1], table[i + 1][j], table[i][j])
    i, j, path = n - 1, m - 1, []
    while i > 0 or j > 0:
        path.append((i, j))
        diagonal = table[i][j] if i > 0 and j > 0 else INFINITE
        left = table[i + 1][j] if j > 0 else INFINITE
        up = table[i][j + 1] if i > 0 else INFINITE
        move = [diagonal, left, up].index(min(diagonal, left, up))
        i, j = (i - 1, j - 1) if move == 0 else (i, j - 1) if move == 1 else (i - 1, j)
    path.append((0, 0))
    return path[::-1]


def matched(path: list[tuple[int, int]], num_target: int) -> list[list[int]]:
    """A(i): the source positions matched to every target position."""
    found: list[list[int]] = [[] for _ in range(num_target)]
    for i, j in path:
        found[j].append(i)
    return found


def exact(source: list[str], target: list[str]) -> list[int]:
    """EM: the first target token that is the same string; -1 where none is."""
    return [target.index(token) if token in target else -1 for token in source]


def min_edit(source: list[str], target: list[str]) -> list[int]:
    """MinED: the same string, else the nearest one of the whole target vocabulary; of equally near ones the first."""
    found = exact(source, target)
    for place, token in enumerate(source):
        if found[place] < 0:
            distances = [edit_distance(token, other) for other in target]
            found[place] = distances.index(min(distances))
    return found


def statistics(source: list[str], target: list[str], counts: dict[tuple[int, int], int], unknown: int) -> list[int]:
    """MS, step 3: of the target tokens c that were matched with t, the least d(t, c) * sigmoid(C[c, t]).

    Of equally good ones the first (the papers do not say).
    """
    found = []
    for t, token in enumerate(source):
        best, least = unknown, INFINITE
        for c, other in enumerate(target):
            if counts.get((c, t), 0) > 0:
                d = edit_distance(token, other) * (0.1 if token in other or other in token else 1.0)
                score = d * (1 / (1 + math.exp(-counts[c, t])))
                if score < least:
                    best, least = c, score
        found.append(best)
    return found


def fuse(mode, source_ids, target_ids, A, tokens, texts, maps, steps, own, temperature=1.0):
    """Step 4 and 5: the source's distributions in the target's vocabulary, one {id: probability} a target position.

    Args:
        mode: "exact", "min_edit" or "statistics".
        tokens: (source's, target's) tokens by id, for the test of equality.
        texts: (source's, target's) decoded tokens by id, for suffixes and spelling.
        maps: (exact map, g).
        steps: of each source position its stored (id, logit), largest first.
        own: of each target position the target's own {id: probability}.
    """
    exactly, g = maps
    fused = []
    for i, js in enumerate(A):
        step = _choose(mode, i, js, source_ids, target_ids, tokens, texts, maps)
        if step == "own" or (step == "gold" and i + 1 >= len(target_ids)):  # the last position has no next token
            fused.append(dict(own[i]))
            continue
        if step == "gold":
            fused.append({target_ids[i + 1]: 1.0})
            continue
        kept: dict[int, float] = {}
        for token, logit in steps[step]:
            other = exactly[token]
            if other < 0 and mode != "exact":
                other = g[token]
            if other >= 0 and other not in kept:
                kept[other] = logit
        if not kept:
            fused.append(dict(own[i]))
            continue
        top = max(kept.values())
        weights = {token: math.exp((logit - top) / temperature) for token, logit in kept.items()}
        fused.append({token: weight / sum(weights.values()) for token, weight in weights.items()})
    return fused


def _choose(mode, i, js, source_ids, target_ids, tokens, texts, maps):
    """The source position whose distribution is copied, or "gold", or "own"."""
    wanted = target_ids[i]
    if mode != "statistics":
        if len(js) != 1:
            return "gold"
        token = source_ids[js[0]]
        same = tokens[0][token] == tokens[1][wanted] or (mode == "min_edit" and maps[1][token] == wanted)
        return js[0] if same else "gold"
    text = texts[1][wanted]
    for j in js:
        other = texts[0][source_ids[j]]
        if other and text and (other.endswith(text) or text.endswith(other)):
            return j
    if len(js) <= 1:
        return "gold"
    left, used = text, None
    for j in js:
        other = texts[0][source_ids[j]]
        if other and left.startswith(other):
            left, used = left[len(other) :], j
    if used is None:
        return "gold"
    return "own" if left else used


def min_ce(ces: list[float]) -> int:
    """r = exp(-CE); the largest; ties to the first."""
    closeness = [math.exp(-ce) for ce in ces]
    return closeness.index(max(closeness))


def avg_ce(ces: list[float], distributions: list[list[dict[int, float]]]) -> list[dict[int, float]]:
    """P = sum of softmax(r) * P, r = exp(-CE)."""
    closeness = [math.exp(-ce) for ce in ces]
    weights = [math.exp(r) for r in closeness]
    weights = [weight / sum(weights) for weight in weights]
    fused = []
    for position in range(len(distributions[0])):
        mixed: dict[int, float] = {}
        for weight, rows in zip(weights, distributions, strict=True):
            for token, probability in rows[position].items():
                mixed[token] = mixed.get(token, 0.0) + weight * probability
        fused.append(mixed)
    return fused
