"""`pruner-zero cache`: list and clear the cache."""

import json
import time
from dataclasses import asdict
from typing import Annotated

import typer

from pruner_zero.cli import options
from pruner_zero.cli.terminal import print_table

app = typer.Typer(
    help="List and clear the cache: statistics, texts that models wrote, converted models.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@app.command("list")
def list_entries(cache: options.Cache = None, as_json: options.AsJson = False) -> None:
    """List what the cache holds, the most recently used first."""
    from pruner_zero.cache import entries

    found = entries(cache)
    if as_json:
        print(json.dumps([{**asdict(entry), "folder": str(entry.folder)} for entry in found]))
        return
    rows = []
    for entry in found:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        rows.append((entry.what, entry.model, used, str(entry.folder), _size(entry.bytes)))
    print_table(("what", "model", "last used", "folder", "size"), rows, left=4)
    print(f"{len(found)} entries, {_size(sum(entry.bytes for entry in found))}")


@app.command("clear")
def clear_entries(
    older_than: Annotated[
        float, typer.Option(metavar="DAYS", min=0, help="Only what was not used for so long.")
    ] = 0,
    cache: options.Cache = None,
) -> None:
    """Delete what the cache holds, except for what a running process uses."""
    from pruner_zero.cache import clear, entries

    deleted = clear(older_than, cache)
    print(
        f"deleted {len(deleted)} entries, {_size(sum(entry.bytes for entry in deleted))}; "
        f"{len(entries(cache))} stay"
    )


def _size(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e8 else f"{count / 1e6:,.2f} MB"
