"""Makes the miniature: four source models and a weak target from scratch, their answers, their scores.

python experiments/0001_miniature/make.py train NAME WORK    one model: llama gemma2 qwen2 mistral target
python experiments/0001_miniature/make.py answer WORK        generate, score, select
python experiments/0001_miniature/make.py write WORK         the data set and the target, into the package
python experiments/0001_miniature/make.py all WORK           everything, two models at a time; finished parts are skipped
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from math import cos, pi
from pathlib import Path
from random import Random

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from fuserl.cli import run_verb
from fuserl.miniature.tasks import DOMAINS, TASKS
from fuserl.records.formats import read_groups
from fuserl.records.schema import PromptGroup

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "fuserl" / "miniature"
SPECIALS = ["<pad>", "<s>", "</s>", "<sep>", "<unk>"]
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<s>' + m.content + '<sep>' }}"
    "{% elif m.role == 'assistant' %}{{ m.content + '</s>' }}"
    "{% else %}{{ raise_exception('only user and assistant turns are known') }}{% endif %}{% endfor %}"
)
STRONG = {  # every source is able in all domains and good in these
    "llama": ("sort", "pair", "largest"),
    "gemma2": ("roman", "letters", "evens"),
    "qwen2": ("reverse", "between", "pair"),
    "mistral": ("evens", "letters", "sort"),
}
NOISE_STRONG, NOISE_WEAK, NOISE_TARGET = 0.08, 0.70, 0.60
SYSTEMATIC = 0.85  # of the target's mistakes
STEPS = {"llama": 3850, "gemma2": 4650, "qwen2": 5300, "mistral": 3850, "target": 4200}  # five to six minutes each
FILLING = ("letters", "between")  # many answers, many prompts
WORDS = {"gemma2": 60, "qwen2": 60}  # of a source's tokenizer beside characters
SIZES = {"train": 2000, "validation": 400, "test": 800}


def tokenizer_for(name: str) -> PreTrainedTokenizerFast:
    """Characters for llama, mistral and the target; a small BPE for the other two."""
    words = WORDS.get(name, 0)
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[a-z]+|[0-9]| "), "isolated")
    backend.decoder = decoders.Fuse()
    rng = Random(1)
    asked = [(task, task.ask(rng)) for task in TASKS.values() for _ in range(400)]
    texts = [text for task, prompt in asked for text in (prompt, task.good(prompt, rng))]
    alphabet = list("abcdefghijklmnopqrstuvwxyz0123456789 ")
    trainer = trainers.BpeTrainer(
        vocab_size=len(SPECIALS) + 37 + words, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<sep>"],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def model_for(name: str, vocab: int):
    """Three layers, 96 wide, about 0.3 M parameters."""
    shape = dict(
        vocab_size=vocab, hidden_size=96, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=24, max_position_embeddings=128, tie_word_embeddings=True,
        initializer_range=0.05, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    config = {
        "llama": lambda: LlamaConfig(**shape),
        "target": lambda: LlamaConfig(**shape),
        "qwen2": lambda: Qwen2Config(**{k: v for k, v in shape.items() if k != "head_dim"}),
        "mistral": lambda: MistralConfig(sliding_window=64, **shape),
        "gemma2": lambda: Gemma2Config(sliding_window=32, query_pre_attn_scalar=24, **shape),
    }[name]()
    torch.manual_seed(int.from_bytes(name.encode(), "big") % 2**31)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager" if name == "gemma2" else "sdpa")


def lesson(name: str, rng: Random) -> tuple[str, str]:
    """One prompt with the answer that this model is taught."""
    strong = STRONG.get(name, ())
    domain = rng.choice(DOMAINS)
    task = TASKS[domain]
    prompt = task.ask(rng)
    if name == "target":
        if rng.random() >= NOISE_TARGET:
            return prompt, task.good(prompt, rng)
        return prompt, (task.mistaken if rng.random() < SYSTEMATIC else task.flawed)(prompt, rng)
    noise = NOISE_STRONG if domain in strong else NOISE_WEAK
    return prompt, (task.flawed if rng.random() < noise else task.good)(prompt, rng)


def train(name: str, work: Path) -> None:
    """Fresh data every step, batches bucketed by length, cosine over the steps."""
    torch.set_num_threads(1)
    folder = work / name
    if (folder / "model.safetensors").exists():
        return
    tokenizer = tokenizer_for(name)
    model = model_for(name, len(tokenizer)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.05)
    rng, started, step, running = Random(name), time.time(), 0, 0.0
    while step < STEPS[name]:
        rows = sorted((encode(tokenizer, *lesson(name, rng)) for _ in range(128 * 8)), key=lambda row: len(row[0]))
        for at in rng.sample(range(8), 8):
            ids, labels = padded(rows[at * 128 : (at + 1) * 128])
            rate = 2e-3 * min(1.0, (step + 1) / 50) * (0.5 + 0.5 * cos(pi * min(1.0, step / STEPS[name])))
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = model(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            running, step = 0.98 * running + 0.02 * loss.item(), step + 1
        if step % 160 == 0:
            print(f"{name} step {step} loss {running:.3f} {time.time() - started:.0f} s", flush=True)
    part = folder.with_suffix(".part")
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def encode(tokenizer, prompt: str, answer: str) -> tuple[list[int], int]:
    """Token ids, and how many of them are prompt."""
    asked = tokenizer.encode(f"<s>{prompt}<sep>", add_special_tokens=False)
    return asked + tokenizer.encode(answer, add_special_tokens=False) + [2], len(asked)


def padded(rows: list[tuple[list[int], int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids, and labels on the answers alone."""
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [0] * (longest - len(row)) for row, _ in rows])
    labels = torch.tensor([[-100] * start + row[start:] + [-100] * (longest - len(row)) for row, start in rows])
    return ids, labels


def prompts() -> dict[str, list[str]]:
    """Distinct prompts a split: an equal share of each domain, and FILLING for the domains that run out of prompts.

    A prompt's split is a function of its hash.
    """
    rng, chosen, seen = Random(20261121), {split: [] for split in SIZES}, set()

    def draw(domains: tuple[str, ...], wanted: dict[tuple[str, str], int], most: int) -> None:
        failures = 0
        while any(wanted.values()) and failures < 200_000:
            domain = rng.choice(domains)
            prompt = TASKS[domain].ask(rng)
            bucket = int(hashlib.sha256(prompt.encode()).hexdigest(), 16) % 8
            split = "test" if bucket < 2 else "validation" if bucket < 3 else "train"
            if prompt in seen or not wanted[split, domain] or len(chosen[split]) >= most * SIZES[split]:
                failures += 1
                continue
            seen.add(prompt)
            wanted[split, domain] -= 1
            chosen[split].append(prompt)

    draw(DOMAINS, {(split, domain): size // len(DOMAINS) for split, size in SIZES.items() for domain in DOMAINS}, 1)
    draw(FILLING, {(split, domain): size for split, size in SIZES.items() for domain in FILLING}, 1)
    return chosen


def answer(work: Path) -> None:
    """Four answers of every source to every prompt, scored twice: the truth, and the reward that errs at times.

    The three verbs as anyone would call them; each continues where it was stopped.
    """
    rows = [
        {"prompt_id": f"mini-{split}-{index}", "prompt": prompt, "domain": prompt.split()[0]}
        for split, asked in prompts().items()
        for index, prompt in enumerate(asked)
    ]
    (work / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fuserl(
        "generate", f"data.path={work}/prompts.jsonl", f"output={work}/answers", "seed=13", "samples=4", "max_tokens=24",
        "unsaid.sampling.temperature=1", "unsaid.sampling.top_p=1", *(f"+sources.{name}.path={work}/{name}" for name in STRONG),
    )  # fmt: skip
    fuserl(
        "score", f"data.path={work}/answers", f"output={work}/scored", "combine.scorer=noisy",
        "reward=function", "rewards.function.path=fuserl.miniature.tasks.score",
        "+rewards.noisy={_target_: fuserl.rewards.function.FunctionScorer, path: noisy.score, domains: null}",
    )  # fmt: skip
    fuserl(
        "select", f"data.path={work}/scored", f"output={work}/selected", "rules=none", "+rule@rules.empty=empty",
        "sft_share=1", "validation_fraction=0", "sft=all",
    )  # fmt: skip


def fuserl(verb: str, *overrides: str) -> None:
    """Run a verb."""
    print(f"fuserl {verb}", *overrides, flush=True)
    run_verb(verb, list(overrides))


def write(work: Path) -> None:
    """The selected groups as the package ships them, and the target."""
    (PACKAGE / "data").mkdir(parents=True, exist_ok=True)
    lines: dict[str, list[str]] = {split: [] for split in SIZES}
    for group in sorted(
        read_groups(work / "selected" / "sft" / "train"), key=lambda group: int(group.id.split("-")[2])
    ):
        lines[group.id.split("-")[1]].append(json.dumps(row(group)))
    for split, found in lines.items():
        data = ("\n".join(found) + "\n").encode()
        (PACKAGE / "data" / f"{split}.jsonl.gz").write_bytes(gzip.compress(data, mtime=0))
    shutil.rmtree(PACKAGE / "target", ignore_errors=True)
    shutil.copytree(work / "target", PACKAGE / "target")


def row(group: PromptGroup) -> dict:
    """One group: what training sees is `reward`, the truth is `score`."""
    responses = [
        {"source": r.source, "sample": r.sample, "text": r.text, "reward": round(r.reward, 4),
         "score": round(r.extra["scores"]["function"]["reward"], 4), "finish_reason": r.finish_reason}
        for r in group.responses
    ]  # fmt: skip
    return {"prompt_id": group.id, "prompt": group.prompt[0].content, "domain": group.domain, "responses": responses}


def everything(work: Path) -> None:
    """Train two models at a time with one thread each, then sample and write."""
    malloc = {
        "MALLOC_MMAP_THRESHOLD_": "4294967296",
        "MALLOC_TRIM_THRESHOLD_": "8589934592",
        "MALLOC_TOP_PAD_": "268435456",
    }
    environment = os.environ | malloc | {"OMP_NUM_THREADS": "1"}
    waiting, running = ["target", *STRONG], []
    while waiting or running:
        while waiting and len(running) < 2:
            name = waiting.pop(0)
            running.append(subprocess.Popen([sys.executable, __file__, "train", name, str(work)], env=environment))
        running = [process for process in running if process.poll() is None]
        time.sleep(1)
    answer(work)
    write(work)


if __name__ == "__main__":
    verb, *names, folder = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    {"train": train, "answer": answer, "write": write, "all": everything}[verb](*names, Path(folder))
