"""Conjugate gradients of many rows: solved rows leave, iterations have a limit."""

import pytest
import torch
from torch import Tensor

from pruner_zero.sparsity.hessian import Hessian
from pruner_zero.sparsity.steps import conjugate_gradients
from pruner_zero.sparsity.steps.conjugate_gradients import dot
from tests.sparsity import reference
from tests.sparsity.steps.test_least_squares import error_rows, loud_layer, random_mask


def test_solved_rows_leave_the_products_and_the_solution_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight, gram = loud_layer(24, 160)
    # Rows that keep few weights are solved in few iterations.
    mask = torch.cat([random_mask(12, 160, 0.95), random_mask(12, 160, 0.3)])
    hessian = Hessian(gram)
    H = hessian.damped()
    support = mask.float()
    gradient = weight.masked_fill(mask, 0.0) @ H
    precondition = conjugate_gradients.preconditioner(hessian, H)(support)
    goal = 1e-8 * dot(gradient, precondition(gradient))
    rows: list[int] = []

    def product(x: Tensor) -> Tensor:
        rows.append(len(x))
        return x @ H

    given = (product, gradient, precondition, goal)
    change, after, iterations = conjugate_gradients.conjugate_gradients(*given, 200)
    assert len(rows) == iterations
    assert rows == sorted(rows, reverse=True)
    assert rows[0] == 24
    assert rows[-1] < 24
    close = 1e-5 * float(gradient.abs().max())
    torch.testing.assert_close(after, gradient - change @ H, rtol=0, atol=close)
    assert (dot(after, precondition(after)) <= goal).all()
    monkeypatch.setattr(conjugate_gradients, "_UNSOLVED", 0.0)
    rows.clear()
    together, _, most = conjugate_gradients.conjugate_gradients(*given, 200)
    assert most == iterations
    assert set(rows) == {24}
    exact = reference.damped(gram)
    assert (error_rows(exact, change - together) <= 1e-6 * error_rows(exact, change)).all()


def test_iterations_stop_at_their_limit() -> None:
    weight, gram = loud_layer(6, 160)
    support = random_mask(6, 160, 0.5).float()
    hessian = Hessian(gram)
    H = hessian.damped()
    precondition = conjugate_gradients.preconditioner(hessian, H)(support)
    given = (lambda x: x @ H, weight @ H, precondition, torch.zeros(6, 1))
    close = 1e-5 * float((weight @ H).abs().max())
    for limit in (0, 3):
        change, after, iterations = conjugate_gradients.conjugate_gradients(*given, limit)
        assert iterations == limit
        assert bool(change.any()) == (limit > 0)
        torch.testing.assert_close(after, (weight - change) @ H, rtol=0, atol=close)
