"""The command line: all commands, and errors printed as one line with exit code 2."""

import errno
import os
import sys
from io import TextIOWrapper
from typing import Any, NoReturn

import typer

from pruner_zero.cli import (
    analyze_command,
    cache_command,
    evaluate_command,
    metric_command,
    prune_command,
    recover_command,
    search_command,
)
from pruner_zero.errors import NO_WINDOWS, PrunerZeroError, one_line
from pruner_zero.version import __version__

INTERRUPTED = 130
# The commands that an interruption leaves unfinished, and that continue when they are run again.
_RESUMED = (["prune"], ["recover"], ["search"])

app = typer.Typer(
    help="Evolve, explain and apply pruning metrics for large language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # For help in panels. Brackets in help texts, such as [@SCOPE], are escaped as Rich requires.
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("prune")(prune_command.prune)
app.command("evaluate")(evaluate_command.evaluate)
app.command("compare")(evaluate_command.compare)
app.command("search")(search_command.search)
app.command("analyze")(analyze_command.analyze)
app.command("report")(analyze_command.report)
app.command("recover")(recover_command.recover)
app.add_typer(metric_command.app, name="metric")
app.add_typer(cache_command.app, name="cache")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"pruner-zero {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(
        False,
        "--version",
        callback=_version,
        is_eager=True,
        help="Show the version and exit.",
        metavar="",
    ),
) -> None:
    """Evolve, explain and apply pruning metrics for large language models."""


def main() -> NoReturn:
    """Run the command line; exit 0, 2 on bad input, 130 on an interruption."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("stdout", "stderr"):
        # A stream that the shell has closed (`>&-`) is None: what is written there is not wanted.
        stream = getattr(sys, name) or open(os.devnull, "w")  # noqa: SIM115
        setattr(sys, name, stream)
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        if sys.platform == "win32":
            raise PrunerZeroError(NO_WINDOWS)
        code = typer.main.get_command(app).main(standalone_mode=False)
        sys.stdout.flush()
    except PrunerZeroError as error:
        _end(f"error: {error}", 2)
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except (BrokenPipeError, SystemExit) as error:
        # Typer may turn a BrokenPipeError into a SystemExit.
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        # The reader of the pipe has closed it. Python flushes stdout once more when it exits,
        # which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        # What cannot be written now must not be written once more on exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _end("error: the standard output has no space left", 2)
    except Exception as error:
        # Imported late: it brings torch, which a command line that is only read does not need.
        from pruner_zero.devices import is_out_of_memory

        if is_out_of_memory(error):
            _end("error: out of memory: choose fewer --windows or --workers, or --offload", 2)
        if not hasattr(error, "format_message"):
            raise
        _end_usage(error)
    # Newer versions of Typer turn an interruption into an exit code themselves.
    if code == INTERRUPTED:
        resumes = ": the same command continues this run"
        _end("interrupted" + (resumes if sys.argv[1:2] in _RESUMED else ""), code)
    sys.exit(code if isinstance(code, int) else 0)


def _end_usage(error: Any) -> NoReturn:
    """Print one line for a command that Typer cannot parse; its help where no command is given."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        sys.exit(2)
    where = context.command_path if context else "pruner-zero"
    _end(f"error: {error.format_message().rstrip('.')}: see `{where} --help`", 2)


def _end(line: str, code: int) -> NoReturn:
    line = one_line(line, longest=10_000)
    # Control characters in the name of a file must not reach the terminal.
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    print("".join(shown), file=sys.stderr)
    sys.exit(code)
