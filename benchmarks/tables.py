"""What the scripts of benchmarks share: tables, paired differences, last words, bfloat16."""

import argparse
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from statistics import fmean, variance
from typing import Any

import torch
from scipy.stats import norm
from torch.nn import functional
from transformers import PreTrainedModel

from pruner_zero.errors import PrunerZeroError
from pruner_zero.files import write_atomic
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.sampling import start_token

HERE = Path(__file__).parent
# The fewest and the most words of a passage, and the fewest letters of its last word.
WORDS, LETTERS = (64, 128), 3
# Values by task and question, or by text and passage.
Groups = Mapping[str, Sequence[float]]


def script_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose description is the first line of a script's docstring."""
    return argparse.ArgumentParser(description=(doc or "").partition("\n")[0])


def results(name: str) -> Path:
    """A file under benchmarks/results."""
    return HERE / "results" / name


def write_table(page: str, table: str, name: str = "") -> None:
    """Write a table into a page of benchmarks, between `<!-- table NAME -->` and `<!-- end -->`."""
    file, mark = HERE / f"{page}.md", f"<!-- table {name} -->".replace("  ", " ")
    before, found, rest = file.read_text().partition(mark)
    if not found:
        raise ValueError(f"{file} has no mark {mark}")
    after = rest.partition("<!-- end -->")[2]
    write_atomic(file, f"{before}{mark}\n\n{table.rstrip()}\n\n<!-- end -->{after}")


def cut(header: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """A table without the columns that are empty in every row."""
    kept = [column for column in range(len(header)) if any(row[column] for row in rows)]
    return [header[n] for n in kept], [[row[n] for n in kept] for row in rows]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def spread(groups: Groups) -> tuple[float, float]:
    """The mean over the groups of the means of their values, and half of its 95 % interval."""
    errors = [variance(values) / len(values) for values in groups.values()]
    mean = fmean(fmean(values) for values in groups.values())
    return mean, float(norm.ppf(0.975)) * math.sqrt(sum(errors)) / len(errors)


def difference(groups: Groups, base: Groups) -> tuple[float, float]:
    """How much higher the values are than a base's, and half of its 95 % interval.

    Paired value by value. Of a group, a cell with fewer values has the first ones of a cell with
    more, and these are compared.
    """
    pairs = {name: zip(values, base[name], strict=False) for name, values in groups.items()}
    return spread({name: [mine - other for mine, other in pairs[name]] for name in groups})


def compared(answers: Groups, base: Groups | None, scale: float = 100, digits: int = 1) -> str:
    """The difference from a base, with half of its 95 % interval; nothing from itself."""
    if base is None or answers == base:
        return ""
    gain, error = difference(answers, base)
    return f"{scale * gain:+.{digits}f} ± {scale * error:.{digits}f}"


def rounded(values: Sequence[float]) -> list[float]:
    """The values with five digits."""
    return [round(value, 5) for value in values]


def passages(text: str, count: int, generator: random.Random) -> list[str]:
    """`count` passages of a text, each ending with a word of letters alone, none with the same one.

    The text is cut into parts of 64 words; of a part at most one word is the last of a passage,
    which begins in one of the parts before. Source: LAMBADA, Paperno et al. 2016 (1606.06031),
    whose passages people chose.
    """
    words, (shortest, longest) = list(re.finditer(r"\S+", text)), WORDS
    parts = list(range(longest - 1, len(words) - shortest + 1, shortest))
    generator.shuffle(parts)
    found = []
    for part in parts:
        lasts = [
            n
            for n in range(part, part + shortest)
            if words[n][0].isalpha()
            and len(words[n][0]) >= LETTERS
            # One space before it, so that all its tokens are of the word.
            and text[words[n - 1].end() : words[n].start()] == " "
        ]
        if lasts:
            last = generator.choice(lasts)
            first = last + 1 - generator.randint(shortest, longest)
            found.append(text[words[first].start() : words[last].end()])
    if len(found) < count:
        raise PrunerZeroError(f"the text has {len(found)} passages and not {count}: give more text")
    return found[:count]


@torch.no_grad()
def cloze(model: LanguageModel, texts: Sequence[str]) -> dict[str, Any]:
    """Of each passage the nats of its last word, and whether all its tokens are the likeliest."""
    nats, right = [], []
    for text in texts:
        before = len(text.rpartition(" ")[0])
        coded = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        length = sum(end > before for _, end in coded["offset_mapping"])
        tokens = torch.tensor([[start_token(model), *coded["input_ids"]]])
        output = model.model(tokens, use_cache=False, logits_to_keep=length + 1)
        logits, word = output.logits[0, -length - 1 : -1].float(), tokens[0, -length:]
        nats.append(float(functional.cross_entropy(logits, word, reduction="sum")))
        right.append(int(torch.equal(logits.argmax(-1), word)))
    digest = sha256("\n".join(texts).encode()).hexdigest()
    return {"nats": rounded(nats), "right": right, "passages_sha256": digest}


@contextmanager
def blocks_in_bfloat16(model: PreTrainedModel) -> Iterator[None]:
    """Within the context, products of `model` are taken in bfloat16 and its logits in float32.

    For weights in float32 or bfloat16. Where the head's are in bfloat16, one copy of them in
    float32 is kept within the context. Contexts nest.
    """
    head = model.get_output_embeddings()
    replaced = vars(head).get("forward")
    weight = head.weight.detach().float()
    bias = None if head.bias is None else head.bias.detach().float()
    device = weight.device.type

    def in_fp32(hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, enabled=False):
            return functional.linear(hidden.float(), weight, bias)

    head.forward = in_fp32
    try:
        with torch.autocast(device, torch.bfloat16):
            yield
    finally:
        del head.forward
        if replaced is not None:
            head.forward = replaced
