"""Other people's rows, turned into ours: UltraFeedback, TRL preferences, ShareGPT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fuserl.records.rows import BadField

ROLE_OF = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
}


def looks_like(row: Any) -> str | None:
    """Which foreign form a row has; None for our own (or for nothing known)."""
    if not isinstance(row, Mapping) or "responses" in row:
        return None
    if "chosen" in row and "rejected" in row:
        return "trl"
    if "completions" in row or "all_generated_responses" in row:
        return "ultrafeedback"
    return "sharegpt" if "conversations" in row else None


def from_ultrafeedback(row: Mapping[str, Any]) -> dict[str, Any]:
    """`instruction` with `completions` (model, response, overall_score), or `all_generated_responses` with scores."""
    base = {"prompt": row.get("instruction") or row.get("prompt"), "domain": row.get("source") or "instruction"}
    if "prompt_id" in row:
        base["prompt_id"] = str(row["prompt_id"])
    if "all_generated_responses" in row:
        texts = list(row["all_generated_responses"] or [])
        scores = list(row.get("all_rm_scores") or [None] * len(texts))
        if len(texts) != len(scores):
            raise BadField("all_rm_scores", f"has {len(scores)} entries for {len(texts)} responses")
        source = row.get("model") or "policy"
        return base | {
            "responses": [
                {"source": source, "sample": n, "text": text, "reward": score}
                for n, (text, score) in enumerate(zip(texts, scores, strict=True))
            ]
        }
    completions = row.get("completions")
    if not isinstance(completions, list) or not all(isinstance(c, Mapping) for c in completions):
        raise BadField("completions", "must be a list of objects")
    return base | {
        "responses": [
            {"source": c.get("model"), "text": c.get("response"), "reward": c.get("overall_score")} for c in completions
        ]
    }


def from_trl(row: Mapping[str, Any]) -> dict[str, Any]:
    """prompt, chosen, rejected (texts or conversations): one source with two samples, rewards 1 and 0."""
    prompt, sides = row.get("prompt"), []
    for name in ("chosen", "rejected"):
        side = row[name]
        if isinstance(side, list):
            if not side or not isinstance(side[-1], Mapping) or side[-1].get("role") != "assistant":
                raise BadField(name, "must end with the assistant's turn")
            if prompt is None and name == "chosen":
                prompt = side[:-1]
            side = side[-1].get("content")
        sides.append(side)
    kept = {key: value for key, value in row.items() if key not in ("prompt", "chosen", "rejected")}
    source = kept.pop("source", "trl")
    return kept | {
        "prompt": prompt,
        "responses": [
            {"source": source, "sample": sample, "text": text, "reward": reward}
            for sample, (text, reward) in enumerate(zip(sides, (1.0, 0.0), strict=True))
        ],
    }


def from_sharegpt(row: Mapping[str, Any]) -> dict[str, Any]:
    """`conversations` of from/value: all but the last turn is the prompt, the last is the one response."""
    turns = row.get("conversations")
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise BadField("conversations", "must be a list of objects")
    messages = []
    for index, turn in enumerate(turns):
        role = turn.get("from", turn.get("role"))
        if role not in ROLE_OF:
            raise BadField(f"conversations[{index}].from", f"is {role!r}, not one of {', '.join(ROLE_OF)}")
        messages.append({"role": ROLE_OF[role], "content": turn.get("value", turn.get("content"))})
    if not messages or messages[-1]["role"] != "assistant":
        raise BadField("conversations", "must end with the assistant's turn")
    base = {"prompt_id": str(row["id"])} if "id" in row else {}
    answer = {"source": row.get("model") or "sharegpt", "text": messages[-1]["content"]}
    return base | {"prompt": messages[:-1], "responses": [answer]}


FOREIGN = {"ultrafeedback": from_ultrafeedback, "trl": from_trl, "sharegpt": from_sharegpt}
