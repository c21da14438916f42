"""Edges of the readers and the store: each gives one clear error, or what the documents promise."""

from __future__ import annotations

import json

import kit
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fuserl.errors import FuserlError
from fuserl.records.formats import read_groups, splits_of
from fuserl.records.schema import Message, PromptGroup, Response
from fuserl.records.store import iter_groups, write_groups
from fuserl.records.trl import write_preferences

ANSWER = {"source": "a", "text": "yes", "reward": 1.0}
GOOD = {"prompt": "hi", "responses": [ANSWER]}
HI, YES, NO, OTHER = (
    {"role": r, "content": c} for r, c in (("user", "hi"), ("assistant", "yes"), ("assistant", "no"), ("user", "x"))
)
TALK = {"id": "1", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]}


def read(folder, *rows, form="auto"):
    (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(read_groups(folder / "d.jsonl", form=form))


def stored(folder):
    write_groups(kit.random_groups(3), folder / "set")
    return folder / "set" / "groups-00000.parquet"


def manifest_with(folder, **fields):
    path = stored(folder).with_name("manifest.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return list(read_groups(folder / "set"))


def one_stored_file(folder, **fields):
    """A single part of a stored set with one row whose fields are changed."""
    row = pq.read_table(stored(folder)).to_pylist()[0] | fields
    pq.write_table(pa.Table.from_pylist([row]), folder / "part.parquet")
    return read_groups(folder / "part.parquet")


def pair_of(better, worse):
    answers = Response("a", better, 0, 1.0), Response("a", worse, 1, 0.0)
    return PromptGroup("p", (Message("user", "hi"),), answers)


def set_without_a_column(folder):
    pq.write_table(pa.Table.from_pylist([{"prompt_id": "a"}] * 3), stored(folder))
    return list(read_groups(folder / "set"))


def saved_datasets(folder, rows):
    from datasets import Dataset, DatasetDict

    DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(folder / "hf")
    return folder / "hf"


def cut_datasets_folder(folder):
    (arrow,) = (saved_datasets(folder, [GOOD] * 50) / "train").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[: arrow.stat().st_size // 2])
    return list(read_groups(folder / "hf", split="train"))


def datasets_folder_without_its_rows(folder):
    next((saved_datasets(folder, [GOOD]) / "train").glob("*.arrow")).unlink()
    return list(read_groups(folder / "hf", split="train"))


def broken_dataset_dict(folder):
    (saved_datasets(folder, [GOOD]) / "dataset_dict.json").write_text("{")
    return splits_of(folder / "hf")


def below_a_file(folder):
    (folder / "file").write_text("")
    return write_groups(kit.random_groups(1), folder / "file" / "set")


def surrogate_into_the_store(folder):
    return write_groups([PromptGroup("p", (Message("user", "hi"),), (Response("a", "\ud800"),))], folder / "set")


TALL = {"prompt": "hi", "chosen": [HI, YES, OTHER, YES], "rejected": [HI, YES, OTHER, NO]}
NO_CLEAR_ERROR = {
    "row that is no object, form given": lambda t: read(t, [1], form="trl"),
    "missing column, form given": lambda t: read(t, {"prompt": "hi", "rejected": "no"}, form="trl"),
    "generated responses are a text": lambda t: read(t, {"prompt": "hi", "all_generated_responses": "yes"}),
    "generated responses are a number": lambda t: read(t, {"prompt": "hi", "all_generated_responses": 5}),
    "scores are a number": lambda t: read(t, {"prompt": "hi", "all_generated_responses": ["x"], "all_rm_scores": 5}),
    "speaker is a list": lambda t: read(t, {"conversations": [{"from": ["gpt"], "value": "x"}]}),
    "reward beyond a double": lambda t: read(t, {"prompt": "hi", "responses": [ANSWER | {"reward": 10**400}]}),
    "sampling is no object": lambda t: read(t, {"prompt": "hi", "responses": [ANSWER | {"sampling": 5}]}),
    "sample beyond 32 bits": lambda t: write_groups(
        read(t, {"prompt": "hi", "responses": [ANSWER | {"sample": 2**40}]}), t / "set"
    ),
    "sides that answer different prompts": lambda t: read(t, {"chosen": [HI, YES], "rejected": [OTHER, NO]}),
    "turns of a side beyond the prompt": lambda t: read(t, TALL),
    "stored set without a column": set_without_a_column,
    "manifest whose files are a list": lambda t: manifest_with(t, files=["groups-00000.parquet"]),
    "manifest whose files are counted in words": lambda t: manifest_with(t, files={"groups-00000.parquet": "three"}),
    "manifest whose file digests are a list": lambda t: manifest_with(t, file_digests=["x"]),
    "manifest whose file digests are null": lambda t: manifest_with(t, file_digests=None),
    "manifest whose file digest is a number": lambda t: manifest_with(t, file_digests={"groups-00000.parquet": 5}),
    "manifest whose sources are a number": lambda t: manifest_with(t, sources=5),
    "manifest whose version is a list": lambda t: manifest_with(t, schema_version=[1]),
    "stored message without a role": lambda t: list(one_stored_file(t, prompt=[{"content": "hi"}])),
    "cut datasets folder": cut_datasets_folder,
    "datasets folder without its rows": datasets_folder_without_its_rows,
    "broken dataset_dict.json": broken_dataset_dict,
    "folder below a file": below_a_file,
    "lone surrogate into the store": surrogate_into_the_store,
    "lone surrogate among preferences": lambda t: write_preferences([pair_of("\ud800", "no")], t / "d.jsonl"),
    "preferences into a missing folder": lambda t: write_preferences([], t / "nowhere" / "d.jsonl"),
}


@pytest.mark.parametrize("name", NO_CLEAR_ERROR)
def test_one_clear_error(name, tmp_path):
    with pytest.raises(FuserlError):
        NO_CLEAR_ERROR[name](tmp_path)


def preference_with_all_samples(folder):
    """The published sets of on-policy UltraFeedback carry all samples and, beside them, the pair made of two."""
    row = {
        "prompt": "hi",
        "all_generated_responses": ["x", "y", "z"],
        "all_rm_scores": [1, 2, 3],
        "chosen": [HI, YES],
        "rejected": [HI, NO],
    }
    return len(read(folder, row)[0].responses) == 3


def fields_of_completions(folder):
    row = {
        "instruction": "hi",
        "models": ["a"],
        "completions": [{"model": "a", "response": "x", "overall_score": 1, "critique": "c"}],
    }
    (group,) = read(folder, row)
    return "models" in group.extra and group.responses[0].extra == {"critique": "c"}


def missing_id_of_a_conversation(folder):
    first, second = read(folder, TALK | {"id": None}, TALK | {"id": "None"})
    return first.id != second.id


def one_part_of_a_stored_set(folder):
    groups = [PromptGroup("p", (Message("user", "hi"),), (Response("a", "yes", sampling={"t": 1}),), extra={"z": 1})]
    write_groups(groups, folder / "set")
    return list(read_groups(folder / "set" / "groups-00000.parquet")) == groups


def damage_is_never_silent(folder):
    path = stored(folder)
    groups, whole = list(iter_groups(folder / "set")), path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        try:
            if list(iter_groups(folder / "set")) != groups:
                return False
        except FuserlError:
            pass
    return True


def newer_manifest_with_new_fields(folder):
    with pytest.raises(FuserlError) as caught:
        manifest_with(folder, schema_version=2, invented_later=1)
    return caught.value.hint == "update fuserl"


QUIETLY_OTHERWISE = {
    "all samples beside a pair": preference_with_all_samples,
    "unknown fields of ultrafeedback are kept": fields_of_completions,
    "unknown fields of sharegpt are kept": lambda t: read(t, TALK | {"lang": "en"})[0].extra == {"lang": "en"},
    "a null id is no id": missing_id_of_a_conversation,
    "one part of a stored set": one_part_of_a_stored_set,
    "damage is never silent": damage_is_never_silent,
    "a newer manifest says update": newer_manifest_with_new_fields,
}


@pytest.mark.parametrize("name", QUIETLY_OTHERWISE)
def test_as_documented(name, tmp_path):
    assert QUIETLY_OTHERWISE[name](tmp_path)
