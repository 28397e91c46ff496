"""How much of the gap to dense minutes of fine-tuning close, zeros and removed units intact.

    python benchmarks/recovery.py --calibration wiki.valid.raw \\
        --texts wikitext=wiki.test.raw pydoc=builtin:pydoc/test \\
        --method 'G^1.5 * sqr(W)@global+asymmetric+exact' --sparsity 0.5
    python benchmarks/recovery.py … --method wanda@channels=0.2
    python benchmarks/recovery.py … --method wanda@channels=0.2 --train self wiki.valid.raw
    python benchmarks/recovery.py --calibration wiki.valid.raw builtin:pydoc …
    python benchmarks/recovery.py page

Prunes on the calibration texts, fine-tunes on them or on others with the dense model as teacher,
and measures the model before and after. Rows are added to benchmarks/results/recovery.json; the
page is made of it.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from pruner_zero import evaluate, prune, recover
from pruner_zero.cli.terminal import LineProgress
from pruner_zero.files import write_json
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.load import load_model
from pruner_zero.models.structure import find_matrices
from pruner_zero.progress import reported_to
from tables import markdown, results, script_parser, write_page

FILE = results("recovery.json")


def main() -> None:
    """Measure one more row and write the page."""
    parser = script_parser(__doc__)
    parser.add_argument("page", nargs="?", choices=["page"], help="write the page alone")
    parser.add_argument("--model", default="builtin:smollm2-135m")
    parser.add_argument("--calibration", nargs="+", help="WikiText-2 validation, raw; or more")
    parser.add_argument("--texts", nargs="*", default=[], metavar="NAME=TEXT")
    parser.add_argument(
        "--train", nargs="*", help="texts to train on, else those of the calibration"
    )
    parser.add_argument("--method", help="as `compare` takes it")
    parser.add_argument("--sparsity", type=float, help="where the method has no share")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--windows-eval", type=int, default=12)
    parser.add_argument("--folder", type=Path, default=Path("runs/recovery"))
    given = parser.parse_args()
    rows = json.loads(FILE.read_text()) if FILE.exists() else []
    if given.page is None:
        rows.append(measure(given))
        write_json(FILE, rows)
    write_page("recovery", page(rows))


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Prune, recover, and measure: one row."""
    metric, _, share = given.method.partition("@channels=")
    removal: dict[str, Any] = {"structure": "channels", "sparsity": float(share)} if share else {}
    pruned, recovered = given.folder / "pruned", given.folder / "recovered"
    with reported_to(LineProgress()):
        prune(
            given.model,
            metric,
            calibration=dict.fromkeys(given.calibration, 1),
            windows=24,
            seqlen=1024,
            output=pruned,
            overwrite=True,
            **(removal or {"sparsity": given.sparsity}),
        )
    with reported_to(LineProgress()):
        recover(
            pruned,
            text=dict.fromkeys(given.train or given.calibration, 1),
            output=recovered,
            minutes=given.minutes,
            teacher=given.model,
            overwrite=True,
        )
    sources = {"dense": given.model, "pruned": str(pruned), "recovered": str(recovered)}
    models = {name: load_model(source) for name, source in sources.items()}
    texts = dict(text.split("=", 1) for text in given.texts)
    return {
        "method": given.method,
        "calibration": given.calibration,
        "sparsity": given.sparsity,
        "minutes": given.minutes,
        "threads": torch.get_num_threads(),
        "perplexity": {
            label: {
                name: evaluate(model, text=text, windows=given.windows_eval).perplexity
                for name, model in models.items()
            }
            for label, text in texts.items()
        },
        "lost_zeros": lost_zeros(models["pruned"], models["recovered"]),
        "learning": json.loads((recovered / "recovery.json").read_text()),
    }


def lost_zeros(before: LanguageModel, after: LanguageModel) -> int:
    """How many weights were zero before and are not after."""
    trained = {matrix.name: matrix.parameter for matrix in find_matrices(after.model)}
    return sum(
        int(((matrix.parameter == 0) & (trained[matrix.name] != 0)).sum())
        for matrix in find_matrices(before.model)
    )


def page(rows: list[dict[str, Any]]) -> str:
    """The page of all rows."""
    texts = list(dict.fromkeys(text for row in rows for text in row["perplexity"]))
    cells = []
    for row in rows:
        zeros = "" if row["sparsity"] is None else f"{100 * row['sparsity']:g} %"
        trained = row["learning"]["settings"]["text"]
        trained = trained if isinstance(trained, str) else " and ".join(trained)
        calibrated = " and ".join(row.get("calibration", ["wiki.valid.raw"]))
        line = [
            f"`{row['method']}`",
            zeros,
            calibrated,
            trained,
            f"{row['minutes']:g} × {row['threads']}",
        ]
        for text in texts:
            values = row["perplexity"].get(text)
            if values is None:
                line += ["", "", ""]
                continue
            dense, pruned, recovered = (values[n] for n in ("dense", "pruned", "recovered"))
            line += [f"{pruned:.2f}", f"{recovered:.2f}", f"{recovered / dense:.2f}"]
        cells.append([*line, str(row["lost_zeros"])])
    columns = [f"{text}, {name}" for text in texts for name in ("pruned", "recovered", "of dense")]
    return (
        "# Recovery by fine-tuning, on SmolLM2-135M\n\n"
        "Made by `python benchmarks/recovery.py --texts wikitext=wiki.test.raw"
        " pydoc=builtin:pydoc/test` with the method and the texts of each row.\n\n"
        + markdown(
            [
                "method",
                "zeros",
                "calibrated on",
                "trained on",
                "minutes × threads",
                *columns,
                "zeros lost",
            ],
            cells,
        )
    )


if __name__ == "__main__":
    main()
