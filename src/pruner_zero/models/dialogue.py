"""What the documents that a model writes begin with: a token, a turn of its chat, or a prompt."""

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.sampling import Document, start_token

# Stands for a user's words while a chat template is read.
_WORDS = "words-of-the-user"


def plain_document(language_model: LanguageModel) -> Document:
    """A document that begins with `start_token`, which may raise PrunerZeroError."""
    return ((start_token(language_model),),)


def dialogue(language_model: LanguageModel) -> Document | None:
    """A user's turn and the answer to it, both written by the model.

    Its pieces are what the chat template puts before the user's words, a system prompt included,
    and what it puts between them and the answer. None where the tokenizer has no chat template, or
    one that does not show the words once.

    Source: Magpie, arXiv 2406.08464.
    """
    tokenizer = language_model.tokenizer
    if not _has_template(tokenizer):
        return None
    try:
        before, *after = _render(tokenizer, [{"role": "user", "content": _WORDS}]).split(_WORDS)
    except TemplateError:
        return None
    pieces = tuple(encode(tokenizer, part) for part in (before, *after))
    return pieces if len(pieces) == 2 and all(pieces) else None


def prompt_document(
    language_model: LanguageModel, messages: Sequence[Mapping[str, str]]
) -> Document:
    """A document that begins with `messages`, by the chat template, and ends with the answer.

    Without a chat template, their text begins a plain document. Raises PrunerZeroError where the
    template refuses them.
    """
    tokenizer = language_model.tokenizer
    if not _has_template(tokenizer):
        text = "\n\n".join(message["content"] for message in messages)
        return (plain_document(language_model)[0] + encode(tokenizer, text),)
    try:
        return (encode(tokenizer, _render(tokenizer, messages)),)
    except TemplateError as error:
        raise PrunerZeroError(
            f"the chat template of {language_model.name} refuses the prompt that begins with "
            f"{messages[0]['content'][:40]!r}: {error}"
        ) from error


def turn_ends(language_model: LanguageModel, document: Document) -> frozenset[int]:
    """The tokens with which the template ends turns of `document`, where they are special."""
    added = set(language_model.tokenizer.get_added_vocab().values())
    return frozenset(piece[0] for piece in document[1:]) & added


def _has_template(tokenizer: Any) -> bool:
    return bool(getattr(tokenizer, "chat_template", None))


def _render(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> str:
    text: str = tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=True
    )
    return text


def encode(tokenizer: Any, text: str) -> tuple[int, ...]:
    """The tokens of `text` alone; that of a chat template has its special tokens."""
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
