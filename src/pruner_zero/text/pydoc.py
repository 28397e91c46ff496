"""`builtin:pydoc`: the language reference that ships with CPython, split by topic."""

from collections.abc import Mapping

from pruner_zero.errors import PrunerZeroError
from pruner_zero.text.source import Role, TextSource

SHARES: Mapping[Role, float] = {"calibration": 0.5, "search": 0.25, "test": 0.25}

# Shorter paragraphs, such as "See also ...", occur in many topics, so they do not link topics.
PASSAGE_LENGTH = 80


def pydoc_documents(part: Role | None = None) -> list[str]:
    """The topics of `part` in the order of their names; all topics where it is None.

    The text differs between versions of Python, and with it the hash in every report.
    Raises PrunerZeroError where the interpreter comes without `pydoc_data`.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise PrunerZeroError(
            "builtin:pydoc needs pydoc_data, which this Python lacks: pass a local text file"
        ) from error
    names = sorted(topics) if part is None else split_topics(topics)[part]
    return [topics[name] for name in names]


def split_topics(topics: Mapping[str, str]) -> dict[Role, list[str]]:
    """Divide `topics` (name → text) about 50 : 25 : 25 by length; names in sorted order.

    Topics quote one another (`specialnames` holds all of `customization`). Topics that share a
    passage go to the same part, so that nothing is tested on that was calibrated or searched on.
    Groups of such topics are assigned by decreasing length, each to the part that is furthest
    below its share.
    """

    def length(group: list[str]) -> int:
        return sum(len(topics[name]) for name in group)

    missing = {part: share * length(list(topics)) for part, share in SHARES.items()}
    parts: dict[Role, list[str]] = {part: [] for part in SHARES}
    for group in sorted(_groups(topics), key=lambda group: (-length(group), group)):
        part = max(missing, key=lambda part: missing[part])
        parts[part] += group
        missing[part] -= length(group)
    return {part: sorted(names) for part, names in parts.items()}


def _groups(topics: Mapping[str, str]) -> list[list[str]]:
    """The topics in groups: two that share a passage are in the same one."""
    groups: list[tuple[list[str], set[str]]] = []
    for name in sorted(topics):
        names, passages = [name], passages_of(topics[name])
        apart = []
        for group in groups:
            if passages.isdisjoint(group[1]):
                apart.append(group)
            else:
                names, passages = group[0] + names, group[1] | passages
        groups = [*apart, (sorted(names), passages)]
    return [names for names, _ in groups]


def passages_of(text: str) -> set[str]:
    """The paragraphs of `text` longer than PASSAGE_LENGTH, without their indentation."""
    paragraphs = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    return {paragraph for paragraph in paragraphs if len(paragraph) > PASSAGE_LENGTH}


PYDOC = TextSource("builtin:pydoc", pydoc_documents, whole=pydoc_documents)
