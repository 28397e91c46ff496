"""A pruning metric: an expression with its name and comparison scope; and the known metrics."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

from torch import Tensor

from pruner_zero.choices import Group
from pruner_zero.errors import PrunerZeroError, did_you_mean, excerpt
from pruner_zero.metric.expression import TERMINALS, Expression
from pruner_zero.metric.grammar import ParseError, from_tree, load_json, parse, to_tree
from pruner_zero.metric.operators import Shape
from pruner_zero.metric.scoring import score
from pruner_zero.table import element

MAX_BYTES = 10_000_000

_WORD = re.compile(r"[A-Za-z][A-Za-z0-9-]*")


@dataclass(frozen=True, slots=True)
class NamedMetric:
    """A metric from the literature: its expression, what it ranks weights by, its source."""

    name: str
    text: str
    description: str
    citation: str


SPARSEGPT_SCORE = "sparsegpt-score"
_ALPHA = "0.7 * (1 - 0.3 * small(S))"

# fmt: off
_ALL = (
    NamedMetric("magnitude", "W", "the weight's magnitude",
                "Han et al. 2015, Learning both Weights and Connections, arXiv 1506.02626"),
    NamedMetric("wanda", "W * X", "magnitude times the norm of the input it multiplies",
                "Sun et al. 2023, Wanda, arXiv 2306.11695, eq. 1"),
    NamedMetric("gblm", "W * X + W * G", "magnitude times input norm plus gradient",
                "Das et al. 2023, GBLM-Pruner, arXiv 2311.04902"),
    NamedMetric("ria", "(row_share(W) + column_share(W)) * X^0.5",
                "the weight's share of its row and of its column, times the root of the input norm",
                "Zhang et al. 2024, Plug-and-Play (RIA), ICLR 2024"),
    NamedMetric(SPARSEGPT_SCORE, "sqr(W) / sqr(D)",
                "the layer error that removing the weight causes after the best update of the rest",
                "Frantar & Alistarh 2023, SparseGPT, arXiv 2301.00774"),
    NamedMetric("fisher", "sqrt(F) * column_normalize(W)",
                "the Fisher price of a unit, shared among its weights: their squares add up to it",
                "Kwon et al. 2022, A Fast Post-Training Pruning Framework, arXiv 2204.09656"),
    NamedMetric("pruner-zero", "abs(W * W) * mms(G)",
                "squared weight times the scaled gradient: the tree the authors' search found",
                "Dong et al. 2024, Pruner-Zero, arXiv 2406.02924"),
    NamedMetric("z-pruner",
                f"({_ALPHA} * abs(zsn(row_normalize(S)))^3"
                f" + (1 - {_ALPHA}) * abs(zsn(column_normalize(S)))^3) * X^1.5",
                "cubed z-scores of row- and column-normalised weights, times the input norm to 1.5",
                "Bhuiyan et al. 2025, Z-Pruner, arXiv 2508.15828, as released"),
)
# fmt: on

NAMED = MappingProxyType({metric.name: metric for metric in _ALL})


@dataclass(frozen=True, slots=True)
class Metric:
    """An expression that scores every weight, with an optional name and comparison scope.

    scope: which weights competed with each other when the metric was found (row, block,
        matrix, global, unit); `pruner_zero.choices.Group` lists the scopes.
    Raises PrunerZeroError where the expression gives no value per weight, and for an unknown scope.
    """

    expression: Expression
    name: str | None = None
    scope: str | None = None

    def __post_init__(self) -> None:
        if self.scope is not None and self.scope not in (scopes := get_args(Group)):
            word = excerpt(self.scope, 40)
            raise PrunerZeroError(f"unknown scope '{word}': {did_you_mean(word, scopes)}")
        if self.expression.shape is not Shape.MATRIX:
            names = sorted(self.expression.terminals)
            used = [name for name in names if TERMINALS[name].shape is Shape.MATRIX]
            why = f"it reduces {' and '.join(used)} to one number" if used else "it needs W, G or S"
            raise PrunerZeroError(f"`{excerpt(self.expression)}` gives no value per weight: {why}")

    @classmethod
    def of(cls, spec: "Metric | Expression | Mapping[str, Any] | str | Path") -> "Metric":
        """The metric that `spec` stands for.

        spec: also a tree (with optional root keys name and scope), the name of a known metric, the
            path of a JSON tree file, or the text of an expression, perhaps with a scope at its end,
            such as "W * X@row". Names come before files, files before expressions; text that ends
            in .json is a path.
        Raises PrunerZeroError in one line that names the file, the column or a near name.
        """
        if isinstance(spec, Metric):
            return spec
        if isinstance(spec, Expression):
            return cls(spec)
        if isinstance(spec, Mapping):
            return cls._of_tree(spec)
        if not isinstance(spec, str | Path):
            raise PrunerZeroError(
                f"a metric is a name, expression, tree or file, not {excerpt(repr(spec), 40)}"
            )
        if isinstance(spec, Path) or spec.endswith(".json"):
            return cls._of_file(Path(spec))
        if spec in NAMED:
            return cls(parse(NAMED[spec].text), name=spec)
        if spec not in TERMINALS and os.path.isfile(spec):
            return cls._of_file(Path(spec))
        text, at, scope = spec.partition("@")
        if at:
            return replace(cls.of(text.strip()), scope=scope.strip())
        try:
            return cls(parse(spec))
        except ParseError:
            if not _WORD.fullmatch(spec):
                raise
            word = excerpt(spec, 40)
            raise PrunerZeroError(
                f"unknown metric '{word}': {did_you_mean(word, [*NAMED, *TERMINALS])}"
            ) from None

    @classmethod
    def _of_tree(cls, tree: object) -> "Metric":
        if not isinstance(tree, Mapping):
            return cls(from_tree(tree))
        nodes = {key: value for key, value in tree.items() if key not in ("name", "scope")}
        for key in ("name", "scope"):
            if not isinstance(tree.get(key), str | None):
                raise PrunerZeroError(f"root: {key} must be a text")
        return cls(from_tree(nodes), name=tree.get("name"), scope=tree.get("scope"))

    @classmethod
    def _of_file(cls, path: Path) -> "Metric":
        shown = excerpt(path, 200)
        try:
            with open(path, "rb") as file:
                data = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            raise PrunerZeroError(f"{shown}: no such file; give the path of a tree file") from None
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", error)
            raise PrunerZeroError(f"{shown}: cannot be read ({why})") from None
        if len(data) > MAX_BYTES:
            raise PrunerZeroError(f"{shown}: larger than 10 MB, which no metric is")
        try:
            return cls._of_tree(load_json(data.decode("utf-8-sig")))
        except UnicodeDecodeError:
            raise PrunerZeroError(f"{shown}: not UTF-8 text; save it as UTF-8") from None
        except PrunerZeroError as error:
            raise PrunerZeroError(f"{shown}: {error}") from None

    @property
    def needs(self) -> frozenset[str]:
        """The terminals that have to be collected to score with this metric."""
        return self.expression.terminals

    @property
    def latex(self) -> str:
        """The expression as LaTeX, without dollar signs."""
        return self.expression.latex

    def score(self, terminals: Mapping[str, Tensor]) -> Tensor:
        """The scores of one matrix, fp32 (out, in), the lowest pruned first.

        Raises ScoreError where there are none to rank, as the function of that name does.
        """
        return score(self.expression, terminals)

    def to_tree(self) -> dict[str, Any]:
        """The released nested form, with name and scope at its root where they are set."""
        extra = {"name": self.name, "scope": self.scope}
        return to_tree(self.expression) | {k: text for k, text in extra.items() if text is not None}

    def to_json(self) -> str:
        """`to_tree` as JSON text, which `Metric.of` reads back from a file."""
        return json.dumps(self.to_tree())

    def __str__(self) -> str:
        """The expression, with `@SCOPE` where it has one: a method for `prune`, but for units."""
        return str(self.expression) + (f"@{self.scope}" if self.scope else "")

    def _repr_html_(self) -> str:
        scope = f" @{self.scope}" if self.scope else ""
        caption = element("div", f"{self.name or ''}{scope}".strip())
        return self.expression._repr_html_() + caption
