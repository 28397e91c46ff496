"""What an operator promises: its shape, its facts, and that it is found by its name."""

import pickle
from itertools import product

import torch
from torch import Tensor

from pruner_zero.metric import (
    OPERATORS,
    Expression,
    Operator,
    Shape,
    Terminal,
    call,
    parse,
    to_latex,
)
from pruner_zero.metric.canonical import canonical
from pruner_zero.metric.tree_json import dumps, loads

SIZES = ((2, 5), (4, 3), (3, 3))
SEEDS = range(5)


class OperatorSuite:
    """Holds for any operator. A subclass gives `operator`; the package must be installed.

    The facts are tried on random fp64 operands, so a claim that fails only in fp32 rounding
    passes. A fact that is not claimed is not tried.
    """

    operator: Operator

    def test_it_is_found_by_its_name(self) -> None:
        assert self.operator.arity in (1, 2)
        assert OPERATORS[self.operator.name] is self.operator

    def test_it_stays_itself_on_the_way_to_another_process(self) -> None:
        assert pickle.loads(pickle.dumps(self.operator)) is self.operator

    def test_expressions_with_it_are_written_and_read_without_loss(self) -> None:
        expression = self._expression()
        assert parse(str(expression)) == expression
        assert loads(dumps(expression)) == expression
        assert to_latex(expression)
        assert canonical(expression, "row").terminals <= expression.terminals

    def test_the_shape_rule_predicts_the_shape_of_the_result(self) -> None:
        for forms in product(Shape, repeat=self.operator.arity):
            result = self.operator.apply(*[_random(form.sizes((3, 4)), 0) for form in forms])
            assert tuple(result.shape) == self.operator.shape(*forms).sizes((3, 4)), forms

    def test_it_keeps_the_dtype_and_leaves_its_operands_alone(self) -> None:
        for dtype in (torch.float32, torch.float64):
            operands = [one.to(dtype) for one in self._operands((3, 4), 0)]
            before = [one.clone() for one in operands]
            first = self.operator.apply(*operands)
            assert first.dtype == dtype
            assert all(map(torch.equal, operands, before))
            assert torch.equal(first.nan_to_num(), self.operator.apply(*operands).nan_to_num())

    def test_an_entry_depends_on_nothing_beyond_the_reach(self) -> None:
        if self.operator.reach == "matrix" or self.operator.shape_rule == "scalar":
            return
        rows = slice(None) if self.operator.reach == "column" else slice(1)
        columns = slice(None) if self.operator.reach == "row" else slice(1)
        for sizes, seed in product(SIZES, SEEDS):
            first, *others = self._operands(sizes, seed)
            changed = _random(sizes, seed + 9)
            changed[rows, columns] = first[rows, columns]
            before = self.operator.apply(first, *others)
            after = self.operator.apply(changed, *others)
            torch.testing.assert_close(before[rows, columns], after[rows, columns])

    def test_the_order_of_the_first_operand_is_kept_where_increasing_says_so(self) -> None:
        if self.operator.increasing == "never":
            return
        nonnegative = self.operator.increasing == "nonnegative"
        for sizes, seed in product(SIZES, SEEDS):
            first, *others = self._operands(sizes, seed, nonnegative)
            # Entries are compared with each other, so the other operands are the same for all.
            if self.operator.reach != "matrix":
                others = [other[:1, :1] for other in others]
            result = self.operator.apply(first, *others)
            for x, y in zip(self._groups(first), self._groups(result), strict=True):
                assert (y[x.argsort()].diff() > 0).all(), "claims to be increasing"

    def test_the_sign_of_the_result(self) -> None:
        if self.operator.sign == "any":
            return
        for sizes, seed in product(SIZES, SEEDS):
            operands = self._operands(sizes, seed, self.operator.sign == "keeps")
            assert (self.operator.apply(*operands) >= 0).all(), f"claims {self.operator.sign}"

    def test_a_positive_factor_comes_out_as_the_degree_says(self) -> None:
        degree = self.operator.degree
        if degree is None:
            return
        for sizes, seed in product(SIZES, SEEDS):
            within = {
                "element": sizes,
                "row": (sizes[0], 1),
                "column": (1, sizes[1]),
                "matrix": (1, 1),
            }[self.operator.reach]
            factor = 0.5 + _random(within, seed + 5).abs()
            operands = self._operands(sizes, seed)
            scaled = self.operator.apply(*[factor * one for one in operands])
            torch.testing.assert_close(scaled, factor**degree * self.operator.apply(*operands))

    def _operands(
        self, sizes: tuple[int, int], seed: int, nonnegative: bool = False
    ) -> list[Tensor]:
        places = range(self.operator.arity)
        return [_random(sizes, seed + place, nonnegative) for place in places]

    def _groups(self, x: Tensor) -> list[Tensor]:
        """The entries that are comparable with each other under the reach."""
        if self.operator.reach == "row":
            return list(x)
        return list(x.T) if self.operator.reach == "column" else [x.flatten()]

    def _expression(self) -> Expression:
        leaves = [Terminal(name) for name in ("W", "G", "S")]
        return call(self.operator.name, *leaves[: self.operator.arity])


def _random(sizes: tuple[int, int], seed: int, nonnegative: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(sizes, generator=generator, dtype=torch.float64)
    return x.abs() if nonnegative else x
