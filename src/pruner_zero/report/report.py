"""`report`: results as one page that people read, keep and print."""

from collections.abc import Sequence
from pathlib import Path

from pruner_zero.errors import PrunerZeroError
from pruner_zero.files import check_file, write_atomic
from pruner_zero.report.page import page
from pruner_zero.report.read import read_result

FILE = "report.html"


def report(inputs: str | Path | Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Write one self-contained HTML page about `inputs` and return its path.

    inputs: folders that search or prune wrote, files that compare wrote. output: the page;
    None: report.html in the first folder among the inputs, else beside the first file. Raises
    PrunerZeroError for an input that is no result and for a page that cannot be written.
    """
    given = [inputs] if isinstance(inputs, str | Path) else inputs
    paths = list(dict.fromkeys(map(Path, given)))
    if not paths:
        raise PrunerZeroError("give at least one folder or file of results")
    results = [read_result(path) for path in paths]
    file = check_file(output if output is not None else _place(paths), page=True)
    # The name of a file can hold half a surrogate pair, which has no UTF-8.
    write_atomic(file, page(results).encode(errors="replace"))
    return file


def _place(paths: Sequence[Path]) -> Path:
    folders = [path for path in paths if path.is_dir()]
    return (folders[0] if folders else paths[0].parent) / FILE
