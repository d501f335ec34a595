"""The gradient of a weight that is trained by rows, on the slice of each tensor-parallel rank."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

from ascend_cpt.backend.models.trained_rows import TrainedRows, WithTrainedRows, mask_rows

WEIGHT = np.arange(16, dtype=np.float32).reshape(8, 2)


@pytest.fixture(autouse=True)
def _use_graph_mode() -> None:
    ms.set_context(mode=ms.GRAPH_MODE)


class SquaredOutput(nn.Cell):
    """The sum of the squares of an output layer whose weight is one rank's slice."""

    def __init__(self, weight: np.ndarray, rows: TrainedRows | None) -> None:
        super().__init__()
        self.weight = Parameter(Tensor(weight), name="weight")
        matmul = ops.MatMul(transpose_b=True)
        self.layer = matmul if rows is None else WithTrainedRows(matmul, rows)

    def construct(self, inputs: Tensor) -> Tensor:
        outputs = self.layer(inputs, self.weight)
        return ops.sum(outputs * outputs)


def differentiate(weight: np.ndarray, rows: TrainedRows | None) -> tuple[float, np.ndarray]:
    network = SquaredOutput(weight, rows)
    step = ms.value_and_grad(network, None, network.trainable_params())
    loss, (gradient,) = step(Tensor(np.ones((3, 2), np.float32)))
    return float(loss), gradient.asnumpy()


@pytest.mark.parametrize("first_row", [1, 4, 6])
def test_slices_have_the_gradient_of_the_whole(first_row: int) -> None:
    loss, expected = differentiate(WEIGHT, None)
    expected[:first_row] = 0
    assert np.count_nonzero(expected) > 0
    whole = differentiate(WEIGHT, TrainedRows(first_row, 8, 1))
    assert whole[0] == loss and np.array_equal(whole[1], expected)
    found = []
    for index, part in enumerate(np.split(WEIGHT, 2)):
        rows = TrainedRows(first_row, 8, 1)
        rows.is_trained = Tensor(mask_rows(first_row, 8, 2, index))
        found.append(differentiate(part, rows)[1])
    assert np.array_equal(np.concatenate(found), expected)
