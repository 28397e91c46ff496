"""The requirements of operators: shape, stated facts, and look-up by name."""

import json
import pickle
from itertools import product

import torch
from torch import Tensor

from pruner_zero.metric.canonical.form import canonical
from pruner_zero.metric.expression import Call, Constant, Expression, Terminal
from pruner_zero.metric.grammar import from_tree, parse, to_tree
from pruner_zero.metric.latex import to_mathml
from pruner_zero.metric.operators import OPERATORS, Operator, Shape

SIZES = ((2, 5), (4, 3), (3, 3))
SEEDS = range(5)
EXPONENT = 1.5
LARGEST = 1e6


class OperatorSuite:
    """Holds for any operator. A subclass gives `operator`.

    The facts are tested on random fp64 operands, so a fact that fails only by fp32 rounding passes.
    A fact that is not stated is not tested.
    """

    operator: Operator

    def test_it_is_found_by_its_name(self) -> None:
        assert self.operator.arity in (1, 2)
        assert OPERATORS[self.operator.name] is self.operator
        assert self.operator.inverse is None or self.operator.inverse in OPERATORS

    def test_it_stays_itself_on_the_way_to_another_process(self) -> None:
        assert pickle.loads(pickle.dumps(self.operator)) is self.operator

    def test_expressions_with_it_are_written_and_read_without_loss(self) -> None:
        expression = self._call()
        assert parse(str(expression)) == expression
        assert from_tree(json.loads(json.dumps(to_tree(expression)))) == expression
        assert "<math" in to_mathml(expression.latex)
        assert canonical(expression, "row").terminals <= expression.terminals

    def test_the_shape_rule_predicts_the_shape_of_the_result(self) -> None:
        for forms in product(Shape, repeat=self.operator.expressions):
            operands = [_random(form.sizes((3, 4)), 0) for form in forms]
            result = self.operator.apply(*self._with_exponent(operands))
            expected = self.operator.shape(*forms).sizes((3, 4))
            assert tuple(result.shape) == expected, forms

    def test_it_keeps_the_dtype_and_leaves_its_operands_alone(self) -> None:
        for dtype in (torch.float32, torch.float64):
            operands = [operand.to(dtype) for operand in self._operands((3, 4), 0)]
            before = [operand.clone() for operand in operands]
            first = self.operator.apply(*operands)
            assert first.dtype == dtype
            assert all(map(torch.equal, operands, before))
            assert torch.equal(first.nan_to_num(), self.operator.apply(*operands).nan_to_num())

    def test_a_stack_gives_what_each_of_its_matrices_gives(self) -> None:
        # A search applies the operator to many matrices at once, if the operator reads no value.
        for sizes in SIZES:
            matrices = [self._operands(sizes, seed) for seed in SEEDS]
            stacked = [torch.stack(operands) for operands in zip(*matrices, strict=True)]
            try:
                actual = torch.func.vmap(self.operator.apply)(*stacked)
            except RuntimeError:
                return
            expected = torch.stack([self.operator.apply(*operands) for operands in matrices])
            torch.testing.assert_close(actual, expected, equal_nan=True)

    def test_an_entry_depends_on_nothing_beyond_the_reach(self) -> None:
        if self.operator.reach == "matrix" or self.operator.shape_rule == "scalar":
            return
        rows = slice(None) if self.operator.reach == "column" else slice(1)
        columns = slice(None) if self.operator.reach == "row" else slice(1)
        for sizes, seed in product(SIZES, SEEDS):
            first, *rest = self._operands(sizes, seed)
            changed = _random(sizes, seed + 9)
            changed[rows, columns] = first[rows, columns]
            before = self.operator.apply(first, *rest)
            after = self.operator.apply(changed, *rest)
            torch.testing.assert_close(before[rows, columns], after[rows, columns])

    def test_the_order_of_the_first_operand_is_kept_where_increasing_says_so(self) -> None:
        increasing = self.operator.increasing
        if increasing == "never":
            return
        for sizes, seed in product(SIZES, SEEDS):
            first, *rest = self._operands(sizes, seed, increasing == "nonnegative")
            # Entries are compared with each other, so the other operands are the same for all.
            if self.operator.reach != "matrix":
                rest = [operand[:1, :1] for operand in rest]
            result = self.operator.apply(first, *rest)
            for x, y in zip(self._groups(first), self._groups(result), strict=True):
                assert (y[x.argsort()].diff() > 0).all(), "claims to be increasing"

    def test_in_fp32_an_increasing_result_stays_distinct(self) -> None:
        operator = self.operator
        if operator.arity > 1 or operator.reach != "element" or operator.increasing == "never":
            return
        lowest = 0.0 if operator.increasing == "nonnegative" else -LARGEST
        for x in torch.linspace(lowest, LARGEST, 21).split(11):
            y = operator.apply(x[None])[0]
            assert y.isfinite().all()
            assert (y.diff() != 0).all(), f"claims to be distinct up to {LARGEST:g}"

    def test_the_sign_of_the_result(self) -> None:
        if self.operator.sign == "any":
            return
        for operands in self._samples(self.operator.sign == "keeps"):
            assert (self.operator.apply(*operands) >= 0).all(), f"claims {self.operator.sign}"

    def test_a_positive_factor_comes_out_as_the_degree_says(self) -> None:
        degree = self.operator.degree
        if degree is None:
            return
        for sizes, seed in product(SIZES, SEEDS):
            factor = self._over_the_reach(sizes, seed)
            operands = self._operands(sizes, seed)
            expressions = operands[: self.operator.expressions]
            scaled = self._with_exponent([factor * operand for operand in expressions])
            expected = factor**degree * self.operator.apply(*operands)
            torch.testing.assert_close(self.operator.apply(*scaled), expected)

    def test_the_parity(self) -> None:
        if self.operator.parity is None:
            return
        for first, *rest in self._samples():
            result = self.operator.apply(first, *rest)
            expected = {"odd": -result, "even": result}
            negated = self.operator.apply(-first, *rest)
            torch.testing.assert_close(negated, expected[self.operator.parity])

    def test_a_power_or_a_multiple_is_one(self) -> None:
        exponent, factor = self._call().exponent, self.operator.factor
        for first, *rest in self._samples():
            result = self.operator.apply(first, *rest)
            if exponent is not None:
                torch.testing.assert_close(result, first.abs() ** exponent)
            if factor is not None:
                torch.testing.assert_close(result, factor * first)

    def test_a_rescaling_is_one(self) -> None:
        rescaling = self.operator.rescaling
        if rescaling is None:
            return
        for sizes, seed in product(SIZES, SEEDS):
            (x,) = self._operands(sizes, seed)
            y = self.operator.apply(x)
            offset = self._over_the_reach(sizes, seed + 1) if rescaling == "affine" else 0.0
            moved = self._over_the_reach(sizes, seed) * x + offset
            torch.testing.assert_close(self.operator.apply(moved), y)
            if rescaling == "scale":
                torch.testing.assert_close(self.operator.apply(x.abs()), y.abs())
            for inputs, results in zip(self._groups(x), self._groups(y), strict=True):
                if rescaling == "affine":
                    inputs, results = inputs.diff(), results.diff()
                ratios = results / inputs
                assert (ratios > 0).all()
                torch.testing.assert_close(ratios, ratios[:1].expand_as(ratios))

    def test_the_order_of_operands_does_not_matter_where_it_commutes(self) -> None:
        if not self.operator.commutative:
            return
        for operands in self._samples():
            result = self.operator.apply(*operands)
            torch.testing.assert_close(self.operator.apply(*reversed(operands)), result)

    def test_twins_are_worth_nothing_where_it_says_so(self) -> None:
        if not self.operator.twins:
            return
        for first, *_ in self._samples():
            result = self.operator.apply(first, first)
            ratio = result / first
            constant = torch.allclose(result, result[:1, :1])
            assert constant or torch.allclose(ratio, ratio[:1, :1])

    def _samples(self, nonnegative: bool = False) -> list[list[Tensor]]:
        """Random operands of several sizes, far from zero and near it."""
        return [
            [operand * scale if place == 0 else operand for place, operand in enumerate(operands)]
            for sizes, seed, scale in product(SIZES, SEEDS, (1.0, 0.01))
            for operands in [self._operands(sizes, seed, nonnegative)]
        ]

    def _operands(
        self, sizes: tuple[int, int], seed: int, nonnegative: bool = False
    ) -> list[Tensor]:
        places = range(self.operator.expressions)
        return self._with_exponent([_random(sizes, seed + place, nonnegative) for place in places])

    def _with_exponent(self, operands: list[Tensor]) -> list[Tensor]:
        if self.operator.exponent != "operand":
            return operands
        return [*operands, torch.tensor([[EXPONENT]], dtype=operands[0].dtype)]

    def _over_the_reach(self, sizes: tuple[int, int], seed: int) -> Tensor:
        """Positive numbers that are constant over the reach."""
        within = {
            "element": sizes,
            "row": (sizes[0], 1),
            "column": (1, sizes[1]),
            "matrix": (1, 1),
        }[self.operator.reach]
        return 0.5 + _random(within, seed + 5, nonnegative=True)

    def _groups(self, x: Tensor) -> list[Tensor]:
        """The entries that are comparable with each other under the reach."""
        if self.operator.reach == "row":
            return list(x)
        return list(x.T) if self.operator.reach == "column" else [x.flatten()]

    def _call(self) -> Call:
        leaves: list[Expression] = [Terminal(name) for name in ("W", "G")]
        operands = leaves[: self.operator.expressions]
        if self.operator.exponent == "operand":
            operands.append(Constant(EXPONENT))
        return Call(self.operator, tuple(operands))


def _random(sizes: tuple[int, int], seed: int, nonnegative: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(sizes, generator=generator, dtype=torch.float64)
    return x.abs() if nonnegative else x
