"""What is done to a model: a metric, a pattern of zeros, a better mask, an update."""

import re
from dataclasses import dataclass
from typing import Literal, cast

from pruner_zero.calibration import Kind
from pruner_zero.errors import PrunerZeroError
from pruner_zero.metric import Metric
from pruner_zero.sparsity import Pattern, Scope, Unstructured, parse_pattern

Update = Literal["none", "obs", "obs-iter", "exact"]
Mode = Literal["auto", "sequential", "one-shot"]

SPARSEGPT = "sparsegpt"
SPARSEGPT_SCORE = "sparsegpt-score"


@dataclass(frozen=True)
class Method:
    """One way to prune, named as the user wrote it.

    update: "none" keeps the remaining weights; "obs" corrects them by SparseGPT's sweep,
    "obs-iter" by a sweep that scores each block of columns anew and chooses its mask,
    "exact" by least squares. refine: the mask is improved by swaps before the update.
    Raises PrunerZeroError where the sweep cannot choose in this scope.
    """

    name: str
    metric: Metric
    pattern: Pattern
    update: Update = "none"
    refine: bool = False

    def __post_init__(self) -> None:
        if self.update == "obs-iter" and self.scope not in ("row", "block", None):
            raise PrunerZeroError(
                f"{self.name} chooses one block of columns after the other, but scope "
                f"'{self.scope}' compares beyond: set scope to row or block, or choose +obs"
            )

    @property
    def scope(self) -> Scope | None:
        """The comparison group, None under an N:M pattern, which is its own group."""
        return self.pattern.scope if isinstance(self.pattern, Unstructured) else None

    @property
    def sweeps_by_own_score(self) -> bool:
        """Whether the metric is SparseGPT's, which its sweep knows without statistics of ours."""
        return self.metric.expression == Metric.of(SPARSEGPT_SCORE).expression

    @property
    def chooses_while_updating(self) -> bool:
        """Whether the mask is chosen during the sweep: as SparseGPT does with its own score
        wherever an update follows, as "obs-iter" does with any."""
        if self.update == "obs-iter":
            return True
        return (
            self.update != "none"
            and self.sweeps_by_own_score
            and self.scope in ("row", "block", None)
        )

    @property
    def kinds(self) -> frozenset[Kind]:
        """The statistics that have to be collected for it."""
        needs = self.metric.needs
        kinds: set[Kind] = {kind for kind in ("G", "X") if kind in needs}
        if "H" in needs or self.refine or self.update != "none":
            kinds.add("gram")
        return frozenset(kinds)

    def mode(self, asked: Mode) -> Literal["sequential", "one-shot"]:
        """The order of work: sequential unless all matrices compete with each other.

        Raises PrunerZeroError where sequential was asked for and cannot be.
        """
        if self.scope != "global":
            return "one-shot" if asked == "one-shot" else "sequential"
        if asked == "sequential":
            raise PrunerZeroError(
                f"{self.name} compares all matrices at once, which one block after the other "
                "cannot: choose --mode one-shot or another --scope"
            )
        return "one-shot"


def parse_method(
    text: str,
    *,
    sparsity: float | None = None,
    pattern: str | None = None,
    scope: Scope | None = None,
    update: Update | None = None,
    refine: bool = False,
) -> Method:
    """Read `METRIC[@SCOPE][+refine][+obs|+obs-iter|+exact]`, METRIC a name, expression or file.

    `sparsegpt` stands for its score in blocks of columns with its update; another update in
    its place keeps the mask that its sweep chooses. A scope in the text wins over `scope`,
    which wins over one in the tree file; without any it is "row". `update` and `refine` say
    what the text leaves open. Exactly one of sparsity in [0, 1) and pattern such as "2:4",
    whose groups lie inside rows and leave no other scope. Raises PrunerZeroError.
    """
    if (sparsity is None) == (pattern is None):
        raise PrunerZeroError("give either --sparsity, such as 0.5, or --pattern, such as 2:4")
    name = text.strip()
    rest, own_update, own_refine = _split_steps(name)
    if own_update and update not in (None, own_update):
        raise PrunerZeroError(
            f"{name} names its update: leave out --update {update}, or +{own_update}"
        )
    body, own_scope = _split_scope(rest)
    metric = Metric.of(SPARSEGPT_SCORE if body == SPARSEGPT else body)
    update = own_update or update or ("obs" if body == SPARSEGPT else "none")
    refine = own_refine or refine
    asked = own_scope or scope
    if pattern is not None:
        groups = parse_pattern(pattern)
        if isinstance(groups, Unstructured):
            raise PrunerZeroError(
                f"--pattern is '{pattern}': write N:M such as 2:4, or give a share as --sparsity"
            )
        if asked not in (None, "row"):
            raise PrunerZeroError(
                f"{name} at {groups}: its groups lie inside rows, so leave out scope '{asked}'"
            )
        return Method(name, metric, groups, update, refine)
    fallback = "block" if body == SPARSEGPT else "row"
    chosen = cast(Scope, asked or metric.scope or fallback)
    return Method(name, metric, Unstructured(sparsity or 0.0, chosen), update, refine)


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


def _split_steps(text: str) -> tuple[str, Update | None, bool]:
    """The text without the steps it ends in, the update among them, and whether it refines."""
    step = re.compile(r"(.*)\+\s*(refine|obs-iter|obs|exact)\s*", re.DOTALL)
    updates: list[Update] = []
    refine, rest = False, text
    while found := step.fullmatch(rest):
        rest = found[1].rstrip()
        if found[2] == "refine":
            refine = True
        else:
            updates.append(cast(Update, found[2]))
    if len(updates) > 1:
        raise PrunerZeroError(f"{text} names {len(updates)} updates: keep one of them")
    return rest, updates[0] if updates else None, refine


def _split_scope(body: str) -> tuple[str, str | None]:
    before, at, after = body.rpartition("@")
    if at and re.fullmatch(r"\s*[A-Za-z]+\s*", after):
        return before.rstrip(), after.strip()
    return body, None
