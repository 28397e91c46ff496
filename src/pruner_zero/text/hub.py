"""The corpora of the literature, from the Hugging Face hub through `datasets`."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

from pruner_zero.errors import PrunerZeroError, one_line
from pruner_zero.files import hub_reachable
from pruner_zero.progress import track
from pruner_zero.text.source import Role, TextSource


@dataclass(frozen=True)
class Part:
    """The documents of a corpus for one role.

    split: the split of the corpus. file: the file to stream, so that only its beginning is fetched;
    None for the whole split. first, count: which documents, all from `first` where count is None.
    """

    split: str
    file: str | None = None
    first: int = 0
    count: int | None = None


def _hub_text(
    name: str,
    where: Mapping[str, str],
    parts: Mapping[Role, Part],
    *,
    column: str = "text",
    local: str,
    separator: str = "\n\n",
) -> TextSource:
    """A corpus on the hub.

    where: what `datasets.load_dataset` takes to find it. column: that of the documents. local: a
    file name to suggest where the hub cannot be reached. Its documents raise PrunerZeroError where
    `datasets` is not installed, the hub cannot be reached, or it lacks the corpus; with
    HF_HUB_OFFLINE set, `datasets` reads its cache alone.
    """
    instead = f"pass a local file such as {local}, or builtin:pydoc"

    def documents(role: Role) -> list[str]:
        try:
            import datasets
        except ImportError as error:
            raise PrunerZeroError(
                f"{name} needs the datasets library: pip install datasets, or {instead}"
            ) from error
        away = f"{name} needs the Hugging Face hub, which cannot be reached: {instead}"
        if not hub_reachable():
            raise PrunerZeroError(away)
        part = parts[role]
        streamed = {"data_files": {part.split: part.file}, "streaming": True} if part.file else {}
        try:
            rows = datasets.load_dataset(**where, split=part.split, **streamed)
            stop = None if part.count is None else part.first + part.count
            chosen = islice(rows, part.first, stop)
            return [row[column] for row in track(chosen, name, part.count)]
        except ConnectionError as error:
            raise PrunerZeroError(away) from error
        except Exception as error:
            # `datasets` lets every error of its storage and transport layers through.
            raise PrunerZeroError(
                f"{name} could not be loaded from the Hugging Face hub ({one_line(error)}): "
                f"{instead}"
            ) from error

    return TextSource(name, documents, separator)


_C4_TRAIN = "en/c4-train.00000-of-01024.json.gz"
_C4_VALIDATION = "en/c4-validation.00000-of-00008.json.gz"
_BY_SPLIT: Mapping[Role, Part] = {
    "calibration": Part("train"),
    "search": Part("validation"),
    "test": Part("test"),
}
# The papers report perplexity on the first 1100 validation documents, joined by spaces; the search
# takes the documents after them. The papers cut each calibration window from one document, and so
# from long documents only; here windows are cut from the joined stream.
_C4_PARTS: Mapping[Role, Part] = {
    "calibration": Part("train", _C4_TRAIN, count=4096),
    "search": Part("validation", _C4_VALIDATION, first=1100, count=1100),
    "test": Part("validation", _C4_VALIDATION, count=1100),
}
_WIKITEXT2 = {"path": "Salesforce/wikitext", "name": "wikitext-2-raw-v1"}
# The repository is a script, which `datasets` 4 no longer runs; the rows are here as parquet.
_PTB = {"path": "ptb-text-only/ptb_text_only", "revision": "refs/convert/parquet"}
HUB_TEXTS = (
    _hub_text("wikitext2", _WIKITEXT2, _BY_SPLIT, local="wiki.valid.raw"),
    _hub_text("c4", {"path": "allenai/c4"}, _C4_PARTS, local="c4-validation.jsonl", separator=" "),
    _hub_text("ptb", _PTB, _BY_SPLIT, column="sentence", local="ptb.valid.txt", separator=" "),
)
