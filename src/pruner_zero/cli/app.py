"""The command line: verbs gathered, errors turned into one line and exit code 2."""

import os
import sys
from typing import NoReturn

import typer

from pruner_zero.cli import compare, evaluate, metric, prune
from pruner_zero.errors import PrunerZeroError
from pruner_zero.version import __version__

app = typer.Typer(
    help="Evolve, explain and apply pruning metrics for large language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("prune")(prune.prune)
app.command("evaluate")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.add_typer(metric.app, name="metric")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"pruner-zero {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True),
) -> None:
    """Evolve, explain and apply pruning metrics for large language models."""


def main() -> NoReturn:
    """Run the command line; exit 0, 2 on bad input, 130 on an interruption."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        code = typer.main.get_command(app).main(standalone_mode=False)
    except PrunerZeroError as error:
        _end(f"error: {error}", 2)
    except (typer.Abort, KeyboardInterrupt):
        _end("interrupted: the same command goes on where this one stopped", 130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:
        show = getattr(error, "show", None)
        if show is None:
            raise
        show()
        sys.exit(getattr(error, "exit_code", 2))
    sys.exit(code if isinstance(code, int) else 0)


def _end(line: str, code: int) -> NoReturn:
    print(" ".join(line.split()), file=sys.stderr)
    sys.exit(code)
