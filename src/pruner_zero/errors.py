"""The error that users read, and helpers that write its message."""

from collections.abc import Iterable
from difflib import get_close_matches

NO_WINDOWS = "Windows is not supported: run pruner-zero in WSL (Windows Subsystem for Linux)"


class PrunerZeroError(Exception):
    """A problem that the user can correct: one line that names what to change.

    The command line prints the message and exits with code 2. Everything else that
    is raised is a defect of this program and keeps its traceback.
    """


def one_line(error: BaseException | str, longest: int = 200) -> str:
    """The message of an error on one line of at most `longest` characters, or its type's name."""
    return excerpt(" ".join(str(error).split()) or type(error).__name__, longest)


def excerpt(text: object, width: int = 80) -> str:
    """A text on one line, cut to `width` characters, to fit into a message or a table."""
    line = str(text).replace("\n", "\\n")
    return line if len(line) <= width else line[: width - 1].rstrip() + "…"


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The words to append to an error about an unknown `name`: a near one, or all `names`."""
    names = sorted(names)
    near = get_close_matches(name, names, n=1, cutoff=0.6) or get_close_matches(
        name.lower(), [candidate.lower() for candidate in names], n=1, cutoff=0.6
    )
    if not near:
        return f"known: {', '.join(names)}"
    spelled = next(candidate for candidate in names if candidate.lower() == near[0].lower())
    return f"did you mean '{spelled}'?"
