"""Which families `prune --structure` takes: every kind of block that the tests know, tried.

    python benchmarks/families.py

Writes benchmarks/families.md. Each tiny random model is pruned, saved, loaded by transformers alone
and run; what is refused is listed with the reason that the program gives.
"""

import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from pruner_zero import PrunerZeroError, prune
from pruner_zero.choices import Structure
from pruner_zero.models import check_dropped
from pruner_zero.text import Corpus

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from tests.tiny import tiny_tokenizer  # noqa: E402 (the path above)
from tests.tiny_models import ARCHITECTURES, tiny_model, tiny_windows  # noqa: E402

# Two of six blocks: a family whose blocks alternate can do without both.
SHARES: dict[Structure, float] = {"channels": 0.5, "heads": 0.5, "blocks": 1 / 3, "experts": 0.25}
DEPTH = 6
TEXT = "What is pruned is as small as it says, and says what it is. " * 20


def attempt(architecture: str, structure: Structure, folder: Path) -> str:
    """Prune a tiny model, and load and run what was saved: yes, some, or why it was refused.

    "some" says that only some of the blocks can go. Raises AssertionError where the loaded model
    computes anything else than the pruned one.
    """
    metric = "wanda" if structure in ("channels", "heads") else None
    sizes = {"windows": 3, "seqlen": 16, "multiple_of": 8, "cache": folder / "cache"}
    asked: dict[str, Any] = {"structure": structure, "sparsity": SHARES[structure], **sizes}
    model = tiny_model(architecture, blocks=DEPTH)
    place, text = folder / f"{architecture}-{structure}", Corpus("text", TEXT)
    some = structure == "blocks" and not all(_can_go(model, n) for n in range(1, DEPTH - 1))
    given = {"tokenizer": tiny_tokenizer(), "calibration": text, "output": place}
    try:
        prune(model, metric, **given, **asked)
    except PrunerZeroError as error:
        # Anything else is no refusal of the family.
        return str(error).split(" family: ")[1].partition(";")[0]
    loaded = AutoModelForCausalLM.from_pretrained(place)
    with torch.no_grad():
        expected, found = model(tiny_windows()).logits, loaded(tiny_windows()).logits
    torch.testing.assert_close(found, expected)
    assert loaded.num_parameters() == model.num_parameters()
    return "some" if some else "yes"


def _can_go(model: Any, index: int) -> bool:
    try:
        check_dropped(model, [index])
    except PrunerZeroError:
        return False
    return True


def page(architectures: Iterable[str] = ARCHITECTURES) -> str:
    """The page in Markdown."""
    lines = [
        "# Families that become smaller",
        "",
        "Made by `python benchmarks/families.py`: of every kind of model in the tests a tiny random"
        f" one, of {DEPTH} blocks, loses half of its channels or heads, a third of its blocks, or a"
        " quarter of its experts, by `prune --structure`, is saved, loaded by transformers alone,"
        " and run: it computes the same. *some*: whether the configuration can do without a block"
        " depends on which it is.",
        "",
        f"| family | {' | '.join(SHARES)} |",
        f"|---|{'---|' * len(SHARES)}",
    ]
    refused: dict[str, list[str]] = defaultdict(list)
    with TemporaryDirectory() as folder:
        for architecture in architectures:
            cells = []
            for structure in SHARES:
                outcome = attempt(architecture, structure, Path(folder))
                taken = outcome in ("yes", "some")
                cells.append(outcome if taken else "no")
                if not taken:
                    refused[f"{structure}: {outcome}"].append(architecture)
            lines.append(f"| `{architecture}` | {' | '.join(cells)} |")
    reasons = [f"- {reason} ({', '.join(several)})" for reason, several in refused.items()]
    return "\n".join([*lines, "", "What the refusals say:", "", *reasons, ""])


if __name__ == "__main__":
    disable_progress_bar()
    (HERE / "families.md").write_text(page())
