"""How a method is written: `METRIC[@SCOPE][@ALLOCATION][+STEPS]`."""

import re
from os.path import isfile
from pathlib import Path
from typing import cast

from pruner_zero.errors import PrunerZeroError, did_you_mean
from pruner_zero.metric import Metric
from pruner_zero.pruning.method import (
    ALLOCATION_RULES,
    SPARSEGPT,
    SPARSEGPT_SCORE,
    AllocationRule,
    Method,
    Update,
)
from pruner_zero.sparsity import (
    SCOPES,
    Allocation,
    Scope,
    SemiStructured,
    Unstructured,
    parse_pattern,
    read_allocation,
)

# No file has a longer path; an expression may have a hundred million characters.
_LONGEST_PATH = 4096


def parse_method(
    text: str,
    *,
    sparsity: float | None = None,
    pattern: str | None = None,
    scope: Scope | None = None,
    update: Update | None = None,
    refine: bool = False,
    asymmetric: bool = False,
    allocation: str | None = None,
) -> Method:
    """Read `METRIC[@SCOPE][@ALLOCATION][+refine][+asymmetric][+obs|+obs-iter|+exact]`.

    METRIC is a name, an expression or a tree file, ALLOCATION one of `ALLOCATION_RULES` or a
    .json file of shares.

    `sparsegpt` stands for its score in blocks of columns with its update; another update in
    its place keeps the mask that its sweep chooses. A scope in the text wins over `scope`,
    which wins over one in the tree file; without any it is "row". `update`, `refine`,
    `asymmetric` and `allocation`, which may also be a file, say what the text leaves open.
    Exactly one of sparsity in [0, 1) and pattern such as "2:4", whose groups lie inside rows
    and leave no other scope. Raises PrunerZeroError.
    """
    if (sparsity is None) == (pattern is None):
        raise PrunerZeroError("give either --sparsity, such as 0.5, or --pattern, such as 2:4")
    name = text.strip()
    rest, own_update, flags = _split_steps(name)
    if own_update and update not in (None, own_update):
        raise PrunerZeroError(
            f"{name} names its update: leave out --update {update}, or +{own_update}"
        )
    body, own_scope, own_rule = _split_groups(rest)
    metric = Metric.of(SPARSEGPT_SCORE if body == SPARSEGPT else body)
    update = own_update or update or ("obs" if body == SPARSEGPT else "none")
    refine = refine or "refine" in flags
    asymmetric = asymmetric or "asymmetric" in flags
    asked = own_scope or scope
    shares = _allocation(own_rule or allocation)
    if pattern is not None:
        groups = _groups(pattern)
        if asked not in (None, "row"):
            raise PrunerZeroError(
                f"{name} at {groups}: its groups lie inside rows, so leave out scope '{asked}'"
            )
        return Method(name, metric, groups, update, refine, asymmetric, shares)
    fallback = "block" if body == SPARSEGPT else "row"
    chosen = cast(Scope, asked or metric.scope or fallback)
    zeros = Unstructured(sparsity or 0.0, chosen)
    return Method(name, metric, zeros, update, refine, asymmetric, shares)


def split_methods(text: str) -> list[str]:
    """Split a comma-separated list of methods; commas inside parentheses do not split.

    Raises PrunerZeroError for an empty one.
    """
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if character == "," and depth <= 0:
            parts.append(text[start:position])
            start = position + 1
    parts.append(text[start:])
    methods = [part.strip() for part in parts]
    if not all(methods):
        raise PrunerZeroError(f"an empty name in the list of methods '{text}'")
    return methods


def _groups(text: str) -> SemiStructured:
    """The N:M pattern that `text` names."""
    groups = parse_pattern(text)
    if isinstance(groups, Unstructured):
        raise PrunerZeroError(
            f"--pattern is '{text}': write N:M such as 2:4, or give a share as --sparsity"
        )
    return groups


def _allocation(text: str | None) -> AllocationRule | Allocation:
    """The rule of this name, or what the file of this name says."""
    if text is None:
        return "uniform"
    if text in ALLOCATION_RULES:
        return text
    if isfile(text):
        return read_allocation(Path(text))
    if text == "evolved":
        raise PrunerZeroError(
            "--allocation evolved is for search, which writes best_allocation.json: give that file"
        )
    raise PrunerZeroError(
        f"--allocation {text} is neither a rule nor a file: {did_you_mean(text, ALLOCATION_RULES)}"
    )


def _split_steps(text: str) -> tuple[str, Update | None, set[str]]:
    """The text without the steps it ends in, the update among them, and the other steps."""
    step = re.compile(r"(.*)\+\s*(refine|asymmetric|obs-iter|obs|exact)\s*", re.DOTALL)
    updates: list[Update] = []
    flags: set[str] = set()
    rest = text
    while found := step.fullmatch(rest):
        rest = found[1].rstrip()
        if found[2] in ("refine", "asymmetric"):
            flags.add(found[2])
        else:
            updates.append(cast(Update, found[2]))
    if len(updates) > 1:
        raise PrunerZeroError(f"{text} names {len(updates)} updates: keep one of them")
    return rest, updates[0] if updates else None, flags


def _split_groups(body: str) -> tuple[str, str | None, str | None]:
    """The text without its `@…` parts, the scope and the allocation among them."""
    scope = rule = None
    while True:
        before, part = _last_part(body)
        if part is None:
            return body, scope, rule
        body = before
        known = part in ALLOCATION_RULES or part.endswith(".json")
        if (rule if known else scope) is not None:
            raise PrunerZeroError(f"'@{part}' is one too many: keep one scope and one allocation")
        if known:
            rule = part
        elif part in SCOPES:
            scope = part
        else:
            near = did_you_mean(part, (*SCOPES, *ALLOCATION_RULES))
            raise PrunerZeroError(f"unknown scope '{part}': {near}")


def _last_part(body: str) -> tuple[str, str | None]:
    """What stands before the last `@…` part, and that part: a word or a file of shares."""
    if body.rstrip().endswith(".json"):
        # From the left, since names of folders may hold an @ too.
        for place in range(max(0, len(body) - _LONGEST_PATH), len(body)):
            part = body[place + 1 :].strip()
            if body[place] == "@" and isfile(part):
                return body[:place].rstrip(), part
    before, at, after = body.rpartition("@")
    word = re.fullmatch(r"[A-Za-z]+", after.strip()) if at else None
    return (before.rstrip(), word[0]) if word else (body, None)
