"""Mutants that no test should kill, each inspected by hand, with the reason."""

# The place of the mutant, its statement before and after, as in mutation.md → why the mutant gives
# the same result, or why its result is not for a test to decide.
EQUIVALENT: dict[tuple[str, str, str], str] = {
    (
        "metric/evaluate.score",
        "if not torch.isfinite(high - low) and (not torch.isfinite(scores).all()):",
        "if not torch.isfinite(high + low) and (not torch.isfinite(scores).all()):",
    ): "a shortcut before the real check: where an end is not finite the sum is not either",
    (
        "metric/canonical/form._without_outermost",
        "positive = [exponent for exponent in inner.values() if exponent > 0]",
        "positive = [exponent for exponent in inner.values() if exponent > 1]",
    ): "a later pass, after which all exponents are smaller, finds the same form",
    (
        "metric/operator.Operator.shape",
        "outputs, inputs = zip(*(operand.value for operand in operands), strict=True)",
        "outputs, inputs = zip(*(operand.value for operand in operands), strict=False)",
    ): "every shape has two axes",
    (
        "metric/canonical/normal.normal",
        "form = Constant(_rounded(value)) if 1e-06 <= abs(value) <= 1000000.0 or not value"
        " else plain",
        "form = Constant(_rounded(value)) if 2e-06 <= abs(value) <= 1000000.0 or not value"
        " else plain",
    ): "from where a number is too small to be joined with others is a choice",
    (
        "metric/canonical/facts.growth",
        "usual = expression.exponent > 0 or is_positive(operands[0])",
        "usual = expression.exponent >= 0 or is_positive(operands[0])",
    ): "the exponent 0 is refused as too high a root all the same",
    (
        "metric/canonical/normal.",
        "_LARGEST_EXPONENT = 32.0",
        "_LARGEST_EXPONENT = 64.0",
    ): "a bound far above the exponents of any metric",
    (
        "sparsity/selection.",
        "_LARGEST_COMPARED_M = 16",
        "_LARGEST_COMPARED_M = 17",
    ): "both ways give the same mask; it decides which is faster",
    (
        "sparsity/threshold._histogram_anywhere",
        "key = bits ^ bits >> 31 & 2147483647",
        "key = bits ^ bits >> 32 & 2147483647",
    ): "torch shifts by the width as by one less: the sign is left",
    (
        "sparsity/steps/swaps.",
        "_ROUNDS = 100",
        "_ROUNDS = 101",
    ): "a bound on time that rows end long before",
    (
        "sparsity/steps/swaps.",
        "_CANDIDATES = 16",
        "_CANDIDATES = 17",
    ): "a measured trade of time against quality; every property holds for others",
    (
        "metric/operators._quotient",
        "return x / torch.where(y.abs() < _TINY, guard, y)",
        "return x / torch.where(y.abs() <= _TINY, guard, y)",
    ): "at the smallest number the guard is that number",
    (
        "sparsity/selection.keep_highest",
        "chunk = max(1, CHUNK // rows.shape[1])",
        "chunk = max(2, CHUNK // rows.shape[1])",
    ): "how many rows are in work at once, not what comes out",
    (
        "sparsity/selection.",
        "CHUNK = 1 << 18",
        "CHUNK = 2 << 18",
    ): "how many numbers are in work at once, not what comes out",
    (
        "sparsity/steps/sweep.sparsegpt",
        "if mask is None and (left - start) % due_columns == 0:",
        "if mask is None and (left + start) % due_columns == 0:",
    ): "every block starts at a multiple of due_columns",
    (
        "sparsity/steps/conjugate_gradients.",
        "_RANGE = 1e-05",
        "_RANGE = 2e-05",
    ): "a guard against rounding with room on both sides",
    (
        "sparsity/steps/swaps.",
        "_LEAST_GAIN = 1e-05",
        "_LEAST_GAIN = 2e-05",
    ): "where a gain is not worth a round, a choice",
    (
        "sparsity/steps/sweep.sparsegpt",
        "due = slice(left, min(left + due_columns, stop))",
        "due = slice(left, max(left + due_columns, stop))",
    ): "columns that are chosen too early are chosen once more when they are due",
    (
        "sparsity/steps/conjugate_gradients.",
        "_WIDE = 4096",
        "_WIDE = 4097",
    ): "a measured trade of time against rounding",
    (
        "sparsity/steps/least_squares.solve",
        "fell = (change * (first + residual)).sum(1, keepdim=True) >= 0",
        "fell = (change * (first + residual)).sum(1, keepdim=True) > 0",
    ): "where the error is the same, either weights will do",
    (
        "sparsity/steps/least_squares.solve",
        "return Solution(_finite(result, layer), iterations, relative, relative <= 2 * tolerance)",
        "return Solution(_finite(result, layer), iterations, relative, relative <= 3 * tolerance)",
    ): "how far beyond the tolerance rounding may leave a solution is a choice",
    (
        "sparsity/steps/swaps.refine_mask",
        "better = errors.error < best.error",
        "better = errors.error <= best.error",
    ): "where the error is the same, either mask will do",
    (
        "sparsity/steps/swaps._best_swaps",
        "wanted = least < -_LEAST_GAIN * error",
        "wanted = least <= -_LEAST_GAIN * error",
    ): "a gain of exactly the least one counts or does not",
    (
        "sparsity/steps/exact_swaps.refine_exact",
        "lower = best.decrease_to(reached) > 0",
        "lower = best.decrease_to(reached) >= 0",
    ): "where the error is the same, either mask will do",
    (
        "sparsity/steps/exact_swaps._swap",
        "chosen = (effect > 0) & (place < most[:, None])",
        "chosen = (effect >= 0) & (place < most[:, None])",
    ): "a pair without effect may swap or stay",
}
