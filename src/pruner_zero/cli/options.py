"""Options of several verbs that are no settings: where results go and how they are shown."""

from pathlib import Path
from typing import Annotated

import typer

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
        help="Folder for statistics of the dense model, and for text that it writes. "
        "\\[default: $PRUNER_ZERO_CACHE, else "
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
