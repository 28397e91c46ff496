"""Which families `prune --structure` takes: tries every architecture of the tests.

    python benchmarks/families.py

Writes the table of families.md. A tiny random model of each family is pruned, saved, loaded by
transformers alone and run; the page lists each refusal with the reason that the program gives.
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
from pruner_zero.structure.blocks import check_dropped
from pruner_zero.text.corpus import Corpus
from tables import HERE, markdown, script_parser, write_table

sys.path.insert(0, str(HERE.parent))

from tests.tiny import tiny_tokenizer
from tests.tiny_models import ARCHITECTURES, tiny_model, tiny_windows

# A third of the blocks is two of six: families with alternating kinds of blocks can lose a pair.
SHARES: dict[Structure, float] = {"channels": 0.5, "heads": 0.5, "blocks": 1 / 3, "experts": 0.25}
DEPTH = 6
TEXT = "What is pruned is as small as it says, and says what it is. " * 20


def attempt(architecture: str, structure: Structure, folder: Path) -> str:
    """Prune a tiny model, load and run the saved model; "yes", "some", or why it was refused.

    "some" says that only some of the blocks can be removed. Raises AssertionError where the logits
    of the loaded model differ from those of the pruned model.
    """
    metric = "wanda" if structure in ("channels", "heads") else None
    sizes = {"windows": 3, "seqlen": 16, "cache": folder / "cache"}
    options: dict[str, Any] = {"structure": structure, "sparsity": SHARES[structure], **sizes}
    model = tiny_model(architecture, blocks=DEPTH)
    place, text = folder / f"{architecture}-{structure}", Corpus("text", TEXT)
    some = structure == "blocks" and not all(_can_go(model, n) for n in range(1, DEPTH - 1))
    given = {"tokenizer": tiny_tokenizer(), "calibration": text, "output": place}
    try:
        prune(model, metric, **given, **options)
    except PrunerZeroError as error:
        # An error without these words does not refuse the family: then the index fails.
        return str(error).split(" family: ")[1].partition(";")[0]
    loaded = AutoModelForCausalLM.from_pretrained(place)
    with torch.no_grad():
        expected, logits = model(tiny_windows()).logits, loaded(tiny_windows()).logits
    torch.testing.assert_close(logits, expected)
    assert loaded.num_parameters() == model.num_parameters()
    return "some" if some else "yes"


def _can_go(model: Any, index: int) -> bool:
    try:
        check_dropped(model, [index])
    except PrunerZeroError:
        return False
    return True


def table(architectures: Iterable[str] = ARCHITECTURES) -> str:
    """The table of the page, and the reasons of the refusals below it."""
    rows = []
    refused: dict[str, list[str]] = defaultdict(list)
    with TemporaryDirectory() as folder:
        for architecture in architectures:
            cells = [f"`{architecture}`"]
            for structure in SHARES:
                outcome = attempt(architecture, structure, Path(folder))
                taken = outcome in ("yes", "some")
                cells.append(outcome if taken else "no")
                if not taken:
                    refused[f"{structure}: {outcome}"].append(architecture)
            rows.append(cells)
    reasons = [f"- {reason} ({', '.join(several)})" for reason, several in refused.items()]
    return "\n".join([markdown(("family", *SHARES), rows), *reasons])


if __name__ == "__main__":
    script_parser(__doc__).parse_args()
    disable_progress_bar()
    write_table("families", table())
