"""`prune --list`: the tokens that a model writes most, for the smaller head of a draft."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pruner_zero.calibration.windows import calibration_texts, take_windows
from pruner_zero.devices import naming_out_of_memory, torch_threads
from pruner_zero.errors import PrunerZeroError
from pruner_zero.files import check_writable, write_atomic, writing
from pruner_zero.models.language_model import LanguageModel, check_tokens
from pruner_zero.models.load import as_language_model
from pruner_zero.provenance import Cost, measured
from pruner_zero.pruning.planning import read_recipe
from pruner_zero.settings.calibration import TOKENS
from pruner_zero.structure.vocabulary import Vocabulary, expected_counts
from pruner_zero.tensor_file import TensorFile, write_tensors
from pruner_zero.text.mixture import Mixture, SelfText, Source, Text

# The share of the windows, and of each text, on which a list is measured, and the most windows.
_HELD_OUT, _MOST = 1 / 8, 32


@dataclass(frozen=True)
class TokenList:
    """The tokens that a draft may propose, and how much of held-out text they cover.

    tokens: ascending. rows: of the model's embedding. covered: the share of the tokens of held-out
    text that are in the list. likeliest: the share of its places where the model's most likely next
    token is: of greedy decoding, no draft with such a head has a larger share accepted.
    """

    output: Path
    tokens: tuple[int, ...]
    rows: int
    covered: float
    likeliest: float
    cost: Cost

    def __str__(self) -> str:
        return (
            f"{self.output}: {len(self.tokens):,} of {self.rows:,} tokens; on held-out text they "
            f"are {self.covered:.2%} of the tokens and {self.likeliest:.2%} of the model's "
            "likeliest next tokens"
        )

    def to_json(self) -> dict[str, Any]:
        """All values in JSON form, of the tokens their number."""
        counts = {"output": str(self.output), "tokens": len(self.tokens), "rows": self.rows}
        shares = {"covered": self.covered, "likeliest": self.likeliest}
        return {**counts, **shares, **self.cost.to_json()}


@naming_out_of_memory("choose fewer --windows or a shorter --seqlen")
def list_tokens(
    model: str | Path | LanguageModel | Any = None,
    *,
    calibration: Source | Mapping[Any, float] | None = None,
    overwrite: bool = False,
    tokenizer: Any = None,
    cache: str | Path | None = None,
    config: str | Path | None = None,
    **settings: Any,
) -> TokenList:
    """Write the tokens that a model writes and expects most to a file; the model is not changed.

    Arguments are those of `prune`: `list` names the file, which `write_list` writes, `tokens` or
    `sparsity` its length. calibration: text of the kind that the draft is for; where None, the
    model writes it. An eighth of it is held out. Raises PrunerZeroError, naming what to change;
    nothing is written then.
    Source: FR-Spec (Zhao et al. 2025, 2502.14856) takes the tokens that a corpus has most; here
    those that the model itself expects.
    """
    settings = {"structure": "vocabulary", **settings}
    metric = settings.pop("metric", None)
    checked, said = read_recipe(model, metric, calibration, config, settings)
    if checked.list is None:
        raise PrunerZeroError("give the file of the tokens as --list")
    file = Path(checked.list)
    _check_file(file, overwrite)
    text = checked.calibration if calibration is None else calibration
    texts = calibration_texts(text, True, checked)
    model = checked.model if model is None else model
    language_model = as_language_model(model, tokenizer, **checked.loading)
    assert texts is not None
    assert isinstance(said.cut, Vocabulary)
    windows, seqlen = checked.shape(TOKENS)
    judged = max(1, min(round(windows * _HELD_OUT), _MOST))
    first, last = _parts(texts)
    shape = (seqlen, checked.seed)
    with torch_threads(checked.threads), measured() as cost:
        seen = take_windows(first, language_model, windows - judged, *shape, folder=cache).tokens
        written = first.count_self(windows - judged)
        held_out = take_windows(
            last, language_model, judged, *shape, first_written=written, folder=cache
        ).tokens
        for part in (seen, held_out):
            check_tokens(language_model.model, part)
        # Of text that the model writes, its probabilities say more than the tokens drawn by them
        # (benchmarks/vocabulary.md).
        expected = expected_counts(language_model, seen)
        tokens = said.cut.listed(language_model, seen, expected)
        covered, likeliest = shares(language_model, held_out, tokens)
    write_list(file, tokens, len(expected))
    return TokenList(file, tokens, len(expected), covered, likeliest, cost)


def shares(
    language_model: LanguageModel, windows: Tensor, tokens: Sequence[int]
) -> tuple[float, float]:
    """How much of `windows` (n, seqlen) `tokens` cover, as `TokenList` has it."""
    inside = torch.tensor(tokens)
    likeliest = expected_counts(language_model, windows, likeliest=True)
    # Nothing predicts the first token of a window.
    covered = torch.isin(windows[:, 1:], inside).double().mean()
    return float(covered), float(likeliest[inside].sum() / likeliest.sum())


def _parts(texts: Mixture) -> tuple[Mixture, Mixture]:
    """The texts without their last eighth, and that; text that the model writes is in both."""

    def part(text: Text, last: bool) -> Text:
        if isinstance(text, SelfText):
            return text
        cut = round(len(text.text) * (1 - _HELD_OUT))
        return replace(text, text=text.text[cut:] if last else text.text[:cut])

    first, last = (tuple(part(text, which) for text in texts.texts) for which in (False, True))
    return replace(texts, texts=first), replace(texts, texts=last)


def write_list(file: Path, tokens: Sequence[int], rows: int) -> None:
    """Write `tokens`, ascending, of a vocabulary of `rows`: all of the file or nothing.

    As little-endian int32, the form of a draft vocabulary in forks of llama.cpp. Where the name
    ends in .safetensors, as the tensors of EAGLE-3 that vLLM reads: d2t (n,) int64, what is added
    to the place of a token in the list to give its number, and t2d (rows,) bool, whether it is in
    the list. Raises PrunerZeroError.
    """
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".safetensors":
        targets, inside = torch.tensor(tokens), torch.zeros(rows, dtype=torch.bool)
        inside[targets] = True
        write_tensors(file, {"d2t": targets - torch.arange(len(targets)), "t2d": inside})
    else:
        write_atomic(file, np.array(tokens, "<i4").tobytes())


def read_list(file: Path) -> Tensor:
    """The tokens of a file that `write_list` wrote. Raises PrunerZeroError for any other file."""
    if file.suffix == ".safetensors":
        tensors = TensorFile(file)
        named = set(tensors) == {"d2t", "t2d"}
        tokens = tensors.read("t2d").nonzero()[:, 0] if named else torch.empty(0)
    else:
        tokens = torch.from_numpy(np.fromfile(file, "<i4").astype(np.int64))
        named = file.stat().st_size == 4 * len(tokens)
    if not (named and len(tokens) and tokens[0] >= 0 and (tokens.diff() > 0).all()):
        raise PrunerZeroError(f"{file} is no list of tokens: choose another file")
    return tokens


def _check_file(file: Path, overwrite: bool) -> None:
    """Raise PrunerZeroError where no list can be written to `file`, before any work."""
    if file.is_dir():
        raise PrunerZeroError(f"{file} is a folder: name a file as --list")
    with writing(file):
        if file.exists():
            if not overwrite:
                raise PrunerZeroError(f"{file} exists: choose another file, or add --overwrite")
            read_list(file)
    check_writable(file)
