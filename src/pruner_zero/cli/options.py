"""Options of several commands that are no settings: where results go and how they are shown."""

from pathlib import Path
from typing import Annotated, Any

import typer

OutputFolder = Annotated[
    Path, typer.Option("--output", "-o", help="Folder for the result.", show_default=False)
]
OutputFile = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="JSON file for the result.", show_default=False),
]
FILES = "Files and output"


def _switch(flag: str, text: str) -> Any:
    # Nothing stands after a switch, where Typer would show <bool>.
    return typer.Option(flag, help=text, metavar="", rich_help_panel=FILES)


Overwrite = Annotated[
    bool,
    _switch(
        "--overwrite", "Replace the model in the output folder, or discard an unfinished run of it."
    ),
]
Quiet = Annotated[bool, _switch("--quiet", "Print the result and errors only, no progress.")]
AsJson = Annotated[bool, _switch("--json", "Print the result as one JSON value.")]
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
