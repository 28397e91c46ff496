"""What text a model writes: the beginnings of its documents, and what the text is like."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.dialogue import dialogue, encode, plain_document, prompt_document
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.sampling import Document
from pruner_zero.progress import note
from pruner_zero.text.mixture import SelfText
from pruner_zero.text.scripts import count_scripts, describe_shares

# Half of the dialogues begin with one of these, in turn, and the model completes the request: left
# alone, a model tuned on code asks about code in most of its dialogues.
OPENINGS = (
    "Write a news report about",
    "Explain how to",
    "Write an encyclopedia article about",
    "Write a program that",
    "Tell a story about",
    "Why",
    "Write a letter to",
    "Write the documentation of",
    "Write a conversation between",
    "Solve step by step:",
    "Write a review of",
    "Write an essay about",
)


def documents_of(language_model: LanguageModel, text: SelfText) -> tuple[list[Document], str]:
    """The documents that windows of `text` hold in turn, and what they are.

    Raises PrunerZeroError where `text` is self:chat and the tokenizer has no chat template, and as
    `plain_document` and `prompt_document` do.
    """
    if text.prompts:
        documents = [prompt_document(language_model, prompt) for prompt in text.prompts]
        return documents, f"answers of the dense model to {len(documents)} prompts"
    if text.name == "self:chat":
        chat = dialogue(language_model)
        if chat is None:
            raise PrunerZeroError(
                f"the tokenizer of {language_model.name} has no chat template that shows a user's "
                "words: give self:documents"
            )
        before, after = chat
        begun = [(before + encode(language_model.tokenizer, words), after) for words in OPENINGS]
        documents = [document for opened in begun for document in (chat, opened)]
        return documents, "dialogues that the dense model wrote by its chat template"
    document = plain_document(language_model)
    shown = language_model.tokenizer.convert_ids_to_tokens(document[0][0])
    return [document], f"documents that the dense model wrote from {shown!r} on"


def repeated_shares(tokens: Tensor, documents: Sequence[Document]) -> Tensor:
    """The share of the 4-grams of each window (n, tokens) that it has before: (n,), float64.

    Those inside a piece of `documents` are not counted.
    """
    pieces = {gram for document in documents for piece in document for gram in _grams(piece)}
    counted = [[g for g in _grams(window) if g not in pieces] for window in tokens.tolist()]
    shares = [1 - len(set(grams)) / max(1, len(grams)) if grams else 0.0 for grams in counted]
    return torch.tensor(shares, dtype=torch.float64)


def _grams(tokens: Sequence[int]) -> list[tuple[int, ...]]:
    return [tuple(tokens[i : i + 4]) for i in range(len(tokens) - 3)]


def describe_written(
    tokens: Tensor, documents: Sequence[Document], tokenizer: Any
) -> dict[str, Any]:
    """A sample of windows (n, tokens), the share of each script, and how much repeats itself."""
    rows = tokens.tolist()
    openings = sorted({document[0] for document in documents}, key=len, reverse=True)
    # Of the first window that begins with a document, without what the model did not write.
    begun = (row[len(o) :] for row in rows for o in openings if tuple(row[: len(o)]) == o)
    sample = tokenizer.decode(next(begun, rows[0]), skip_special_tokens=True)
    whole = " ".join(tokenizer.batch_decode(rows, skip_special_tokens=True))
    return {
        "sample": " ".join(sample.split())[:200],
        "scripts": {name: round(share, 4) for name, share in count_scripts(whole).items()},
        "repeated": round(float(repeated_shares(tokens, documents).mean()), 4),
    }


def unusual_scripts(facts: Mapping[str, Any], tokenizer: Any) -> dict[str, float]:
    """The scripts of more than a tenth of what was written that the chat template does not have.

    facts: as by `describe_written`. A tokenizer without a chat template stands for Latin.
    """
    usual = _usual_scripts(tokenizer)
    return {n: share for n, share in facts["scripts"].items() if n not in usual and share > 0.1}


def note_written(facts: Mapping[str, Any], tokenizer: Any, text: SelfText) -> None:
    """Note what `describe_written` found, and scripts that the chat template does not have."""
    note(
        f"the model wrote text such as: {facts['sample']} (letters: "
        f"{describe_shares(facts['scripts'])}; {facts['repeated']:.0%} of it repeats itself)"
    )
    rare = unusual_scripts(facts, tokenizer)
    if rare and not text.scripts:
        names = ",".join(name for name in _usual_scripts(tokenizer) if name != "other")
        note(
            f"of the letters that the model wrote, {describe_shares(rare)}: if the pruned model is "
            f"not for that, give --scripts {names}"
        )


def _usual_scripts(tokenizer: Any) -> dict[str, float]:
    return count_scripts(getattr(tokenizer, "chat_template", None) or "Latin")
