"""Other people's rows, turned into ours: UltraFeedback, TRL preferences, ShareGPT, plain texts."""

from __future__ import annotations

import hashlib
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

TURN = (("from", "role"), ("value", "content"))  # ShareGPT's names, and those that many use instead


def looks_like(row: Any) -> str | None:
    """Which foreign form a row has; None for our own (or for nothing known). A null column of a table is absent."""
    there = {key for key, value in row.items() if value is not None} if isinstance(row, Mapping) else set()
    if "responses" in there:
        return None
    if there & {"completions", "all_generated_responses"}:
        return "ultrafeedback"
    if there & {"chosen", "rejected"} and {"chosen", "rejected"} <= row.keys():
        return "trl"
    if "conversations" in there:
        return "sharegpt"
    return "text" if "text" in there and "prompt" not in there else None


def from_ultrafeedback(row: Mapping[str, Any]) -> dict[str, Any]:
    """`instruction` with `completions` (model, response, overall_score), or `all_generated_responses` with scores."""
    generated = row.get("all_generated_responses") is not None
    asked = "prompt" if row.get("prompt") else "instruction"
    about = "domain" if row.get("domain") else "source"
    answers = ("all_generated_responses", "all_rm_scores", "model") if generated else ("completions",)
    base = {key: value for key, value in row.items() if key not in (asked, about, *answers)}
    base |= {"prompt": row.get(asked), "domain": row.get(about) or "instruction", "prompt_id": _name(row, "prompt_id")}
    if generated:
        texts = _list(row, "all_generated_responses")
        scores = _list(row, "all_rm_scores") if row.get("all_rm_scores") is not None else [None] * len(texts)
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
    if not isinstance(completions, list) or not all(isinstance(completion, Mapping) for completion in completions):
        raise BadField("completions", "must be a list of objects")
    return base | {"responses": [_completion(completion) for completion in completions]}


def _completion(row: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in row.items() if key not in ("model", "response", "overall_score")}
    return kept | {"source": row.get("model"), "text": row.get("response"), "reward": row.get("overall_score")}


def from_trl(row: Mapping[str, Any]) -> dict[str, Any]:
    """prompt, chosen, rejected (texts or conversations): one source with two samples, rewards 1 and 0."""
    prompt, answers = row.get("prompt"), []
    for sample, (name, reward) in enumerate((("chosen", 1.0), ("rejected", 0.0))):
        side, kept = row.get(name), {}
        if isinstance(side, list):
            if not side or not isinstance(side[-1], Mapping) or side[-1].get("role") != "assistant":
                raise BadField(name, "must end with the assistant's turn")
            before = side[:-1]
            prompt = before if prompt is None else prompt
            if before and _turns(before) != _turns(prompt):
                raise BadField(name, "answers another conversation than the row's prompt")
            kept = {key: value for key, value in side[-1].items() if key not in ("role", "content")}
            side = side[-1].get("content")
        answers.append(kept | {"source": row.get("source") or "trl", "sample": sample, "text": side, "reward": reward})
    base = {key: value for key, value in row.items() if key not in ("prompt", "chosen", "rejected", "source")}
    return base | {"prompt": prompt, "responses": answers}


def _turns(prompt: Any) -> Any:
    """A conversation as it is compared: a text is a user's turn, and tables fill absent fields with nulls."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list) or not all(isinstance(turn, Mapping) for turn in prompt):
        return prompt
    return [{key: value for key, value in turn.items() if value is not None} for turn in prompt]


def from_sharegpt(row: Mapping[str, Any]) -> dict[str, Any]:
    """`conversations` of from/value: all but the last turn is the prompt, the last is the one response."""
    turns = _list(row, "conversations")
    if not all(isinstance(turn, Mapping) for turn in turns):
        raise BadField("conversations", "must be a list of objects")
    messages = []
    for index, turn in enumerate(turns):
        role, text = (turn.get(name) if turn.get(name) is not None else turn.get(other) for name, other in TURN)
        if not isinstance(role, str) or role not in ROLE_OF:
            raise BadField(f"conversations[{index}].from", f"is {role!r}, not one of {', '.join(ROLE_OF)}")
        kept = {key: value for key, value in turn.items() if key not in ("from", "role", "value", "content")}
        messages.append(kept | {"role": ROLE_OF[role], "content": text})
    if not messages or messages[-1]["role"] != "assistant":
        raise BadField("conversations", "must end with the assistant's turn")
    if isinstance(row.get("system"), str) and row["system"].strip() and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": row["system"]})
    named = "id" if row.get("prompt_id") is None else "prompt_id"
    base = {key: value for key, value in row.items() if key not in (named, "conversations", "model")}
    base["prompt_id"] = _name(row, named)
    *prompt, last = messages
    kept = {key: value for key, value in last.items() if key not in ("role", "content")}
    answer = kept | {"source": row.get("model") or "sharegpt", "text": last["content"]}
    return base | {"prompt": prompt, "responses": [answer]}


def from_text(row: Mapping[str, Any]) -> dict[str, Any]:
    """`text`, which answers nothing: a block of a corpus. Its prompt names it, and `chat_template=text` does not show it."""
    text = row.get("text")
    if not isinstance(text, str) or not text.strip():
        raise BadField("text", "is missing or empty")
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    base = {key: value for key, value in row.items() if key not in ("text", "source", "id")}
    base |= {"prompt_id": _name(row, "id"), "prompt": f"text {digest}"}
    return base | {"responses": [{"source": row.get("source") or "text", "text": text}]}


def _name(row: Mapping[str, Any], key: str) -> str | None:
    """Other people number their rows."""
    return None if row.get(key) is None else str(row[key])


def _list(row: Mapping[str, Any], name: str) -> list[Any]:
    value = row.get(name)
    if not isinstance(value, list):
        raise BadField(name, f"must be a list, not {type(value).__name__}")
    return value


FOREIGN = {"ultrafeedback": from_ultrafeedback, "trl": from_trl, "sharegpt": from_sharegpt, "text": from_text}
