"""F, and the prices of matrices and blocks, equal those of factors by which values are scaled."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pruner_zero.calibration.gradients import collect_gradients
from pruner_zero.calibration.statistics import MatrixStatistics
from pruner_zero.models.couplings import head_slices
from pruner_zero.models.matrices import find_matrices
from tests.calibration.reference import plain_products
from tests.calibration.test_gradients import every_architecture
from tests.tiny_models import tiny_model, tiny_windows

PRICES = ("F", "matrix_price", "block_price")


def prices(model: PreTrainedModel, windows: Tensor, seed: int = 0) -> dict[str, MatrixStatistics]:
    return collect_gradients(model, find_matrices(model), windows, PRICES, seed=seed)


def half_mean_square(products: Tensor) -> Tensor:
    """Of the tokens after the first 8 of each window, (windows, tokens, units) -> (units,)."""
    return products[:, 8:].square().flatten(0, 1).mean(0).float() / 2


@every_architecture
def test_prices_are_half_the_mean_square_over_tokens(architecture: str) -> None:
    model, windows = tiny_model(architecture), tiny_windows(3, 14)
    collected, expected = prices(model, windows), plain_products(model, windows)
    slices = head_slices(model)
    for matrix in find_matrices(model):
        of_matrix, products = collected[matrix.name], expected.inputs[matrix.name]
        F, width = of_matrix["F"], matrix.weight.shape[1]
        assert F.shape == (1, width)
        assert F.dtype == torch.float32
        units = slices.get(matrix.name, width)
        reference = half_mean_square(products.unflatten(2, (units, -1)).sum(3))
        close = {"rtol": 1e-3, "atol": 1e-5 * float(reference.max()) + 1e-12}
        torch.testing.assert_close(F.view(units, -1).sum(1), reference, **close)
        # A unit's price is spread equally over its columns.
        torch.testing.assert_close(
            F, F.view(units, -1)[:, :1].expand(units, width // units).reshape(1, -1)
        )
        whole = half_mean_square(products.sum(2, keepdim=True))
        close = {"rtol": 1e-3, "atol": 1e-4 * float(reference.sum()) + 1e-12}
        torch.testing.assert_close(of_matrix["matrix_price"], whole[None], **close)
        block = half_mean_square(expected.blocks[matrix.block])
        torch.testing.assert_close(of_matrix["block_price"], block[None], rtol=1e-3, atol=1e-9)
