"""Random expressions and tensors for property tests."""

from collections.abc import Sequence

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from pruner_zero.metric.expression import TERMINALS, Constant, Expression, Terminal, call
from pruner_zero.metric.operators import OPERATORS

# The first call into torch, or a busy machine, takes longer than the default deadline.
lightly = settings(deadline=None, max_examples=30)

terminals = st.sampled_from(sorted(TERMINALS)).map(Terminal)
constants = st.floats(allow_nan=False, allow_infinity=False).map(Constant)
# Leaves of moderate size.
tame = terminals | st.floats(-3, 3).map(lambda value: Constant(round(value, 3)))


def expressions(
    operators: Sequence[str] = tuple(OPERATORS),
    leaves: st.SearchStrategy[Expression] = terminals | constants,
    max_leaves: int = 12,
) -> st.SearchStrategy[Expression]:
    """Expressions over `operators` and `leaves`; exponents of powers are constants."""

    def grow(below: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
        return st.one_of(
            [
                st.builds(call, st.just(name), below, constants)
                if name == "power"
                else st.builds(call, st.just(name), *[below] * OPERATORS[name].arity)
                for name in operators
            ]
        )

    return st.recursive(leaves, grow, max_leaves=max_leaves)


@st.composite
def matrices(draw: st.DrawFn, least: int = 1, most: int = 6) -> dict[str, Tensor]:
    """All terminals of one weight matrix of random size, as the contracts describe them."""
    outputs, inputs = draw(st.integers(least, most)), draw(st.integers(least, most))
    return terminals_of(outputs, inputs, seed=draw(st.integers(0, 2**31)))


def terminals_of(outputs: int, inputs: int, seed: int = 0) -> dict[str, Tensor]:
    """W, G, X, O, F, P, D and S of one weight matrix of shape (outputs, inputs), fp32."""
    generator = torch.Generator().manual_seed(seed)
    signed = torch.randn(outputs, inputs, generator=generator)
    return {
        "W": signed.abs(),
        "G": torch.randn(outputs, inputs, generator=generator).square(),
        "X": 0.1 + torch.rand(1, inputs, generator=generator),
        "O": 0.1 + torch.rand(outputs, 1, generator=generator),
        "F": 0.1 + torch.rand(1, inputs, generator=generator),
        "P": 0.1 + torch.rand(1, 1, generator=generator),
        "D": 0.1 + torch.rand(1, inputs, generator=generator),
        "S": signed,
    }
