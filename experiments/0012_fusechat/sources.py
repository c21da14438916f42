"""Two of the miniature's sources, trained so that target and sources have three architectures and three tokenizers.

python experiments/0012_fusechat/sources.py WORK    WORK/gemma2 and WORK/qwen2; what is there already is kept
"""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

MAKE = Path(__file__).resolve().parents[1] / "0001_miniature" / "make.py"
WORDS = {"gemma2": 60, "qwen2": 240}  # the target's tokenizer has characters alone


def main(work: Path) -> None:
    """Train both by the recipe of the miniature."""
    spec = spec_from_file_location("make_miniature", MAKE)
    assert spec
    assert spec.loader
    make = module_from_spec(spec)
    spec.loader.exec_module(make)
    make.WORDS.update(WORDS)
    work.mkdir(parents=True, exist_ok=True)
    for name in WORDS:
        make.train(name, work)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
