"""Options that several verbs share, declared once."""

from pathlib import Path
from typing import Annotated

import typer

MODEL = (
    "A hub id, a folder, a .gguf file, builtin:smollm2-135m, or pickled: and one of the first two."
)
TEXT = "A corpus (wikitext2, c4, ptb, builtin:pydoc) or a .txt, .raw, .jsonl or .parquet file."

Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL, show_default=False)]
ModelOrConfig = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help=f"{MODEL} Or named in --config.", show_default=False),
]
Sparsity = Annotated[
    float | None, typer.Option(help="The share of weights to zero, in [0, 1).", show_default=False)
]
PatternText = Annotated[
    str | None,
    typer.Option(
        "--pattern",
        help="N:M, N zeros in each M weights, e.g. 2:4.",
        show_default=False,
    ),
]
ScopeText = Annotated[
    str | None,
    typer.Option(
        "--scope",
        help="Which weights compete: row, block (128 columns), matrix, global. "
        "[default: the metric's own, else row]",
        show_default=False,
    ),
]
Refine = Annotated[
    bool | None,
    typer.Option(
        "--refine",
        help="Improve the mask by swaps that lower each row's error. [default: as the metric says]",
        show_default=False,
    ),
]
Asymmetric = Annotated[
    bool | None,
    typer.Option(
        "--asymmetric",
        help="Updates, or swaps without one, aim at what the dense model puts out, making up for "
        "earlier blocks too. "
        "[default: as the metric says]",
        show_default=False,
    ),
]
AllocationText = Annotated[
    str | None,
    typer.Option(
        "--allocation",
        help="How much of each matrix is pruned: uniform, owl, error, or a JSON "
        "file of shares. [default: as the metric says, else uniform]",
        show_default=False,
    ),
]
UpdateText = Annotated[
    str | None,
    typer.Option(
        "--update",
        help="How the remaining weights make up for the loss: none; obs, SparseGPT's sweep; "
        "obs-iter, the sweep choosing the mask as it goes; exact, least squares. "
        "[default: as the metric says, else none]",
        show_default=False,
    ),
]
Calibration = Annotated[
    str | None, typer.Option(help=f"Text for statistics. {TEXT}", show_default=False)
]
Windows = Annotated[
    int | None, typer.Option(help="Calibration windows. [default: 24]", show_default=False)
]
Seqlen = Annotated[
    int | None, typer.Option(help="Tokens in a window. [default: 1024]", show_default=False)
]
Seed = Annotated[
    int | None, typer.Option(help="Decides the windows. [default: 0]", show_default=False)
]
ModeText = Annotated[
    str | None,
    typer.Option(
        "--mode",
        help="sequential: each block sees the pruned ones before it; one-shot: all statistics "
        "from the dense model. [default: sequential, one-shot for --scope global alone]",
        show_default=False,
    ),
]
Include = Annotated[
    list[str] | None,
    typer.Option(help="Prune only matrices of this name pattern, e.g. '*.mlp.*'; repeatable."),
]
Exclude = Annotated[
    list[str] | None, typer.Option(help="Leave matrices of this name pattern alone; repeatable.")
]
DtypeText = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        help="auto, float32, bfloat16 or float16. [default: auto, the checkpoint's]",
        show_default=False,
    ),
]
DeviceText = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="auto, cpu, mps, cuda, cuda:1, or a list cuda:0,cuda:1 over which blocks are spread. "
        "[default: auto, the fastest there is]",
        show_default=False,
    ),
]
GradientSeqlen = Annotated[
    int | None,
    typer.Option(
        "--gradient-seqlen",
        help="Cut windows into pieces of this many tokens for G. [default: whole windows]",
        show_default=False,
    ),
]
Damping = Annotated[
    float | None,
    typer.Option(help="Share of the Hessian's mean diagonal. [default: 0.01]", show_default=False),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        help="Ray cluster. [default: $RAY_ADDRESS, else this machine]",
        show_default=False,
    ),
]
RayResources = Annotated[
    list[str] | None,
    typer.Option(
        "--ray-resources",
        help="What a Ray worker needs, NAME=AMOUNT, e.g. num_cpus=2 or num_gpus=1; repeatable.",
    ),
]
OutputFolder = Annotated[
    Path, typer.Option("--output", "-o", help="Folder for the result.", show_default=False)
]
OutputFile = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="JSON file for the result.", show_default=False),
]
FILES = "Files and output"
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="Replace what is in the output folder.", rich_help_panel=FILES
    ),
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", help="Print the result and errors only, no progress.", rich_help_panel=FILES
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option(
        help="Folder for statistics of the dense model. \\[default: $PRUNER_ZERO_CACHE, else "
        "~/.cache/pruner-zero]",
        show_default=False,
        rich_help_panel=FILES,
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        help="YAML file of settings, the options with `_` for `-`; options win over it.",
        show_default=False,
        rich_help_panel=FILES,
    ),
]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print the result as one JSON value.", rich_help_panel=FILES),
]
