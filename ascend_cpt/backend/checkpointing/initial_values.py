"""Sets a network and its optimizer back to their initial values, for `cpt.restart_phases`."""

from __future__ import annotations

from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

_PREFIX = "initial."


class InitialValues:
    """Copies of all values of a training step: weights, optimizer state, step and loss scale."""

    def __init__(self) -> None:
        self._restore: nn.Cell | None = None

    def keep(self, step: nn.Cell) -> None:
        """Copy the values of a training step."""
        self._restore = _Restore(list(step.parameters_dict().values()))

    def restore(self) -> None:
        """Set all values of the training step to the copies."""
        assert self._restore is not None
        self._restore()


class _Restore(nn.Cell):
    """Assigns the copies in a graph: `Parameter.set_data` does not reach the optimizer state of a compiled step."""

    def __init__(self, parameters: list[Parameter]) -> None:
        super().__init__()
        copies = [
            Parameter(Tensor(one.asnumpy().copy(), one.dtype), name=_PREFIX + one.name, requires_grad=False)
            for one in parameters
        ]
        self.parameters, self.copies = ParameterTuple(parameters), ParameterTuple(copies)
        self.assign = ops.Assign()

    def construct(self) -> Tensor:
        """Assign, and return the first copy."""
        for parameter, copy in zip(self.parameters, self.copies):  # noqa: B905 - a graph has no `strict`
            self.assign(parameter, copy)
        return self.copies[0]
