"""Muon: momentum, then the nearest orthogonal matrix, for the weights between the first and the last layer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from kitae.training.precision import choose

# Coefficients of the quintic iteration, chosen for speed at zero: singular values end between about 0.7 and 1.2, which
# serves as well as 1 (Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024).
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ROUNDS = 5


def orthogonal(matrix: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """About U V^T of the singular value decomposition U S V^T of `matrix` [m, n], by Newton-Schulz iteration.

    Args:
        dtype: what the products are computed in.

    Returns:
        [m, n], of the matrix's dtype; its singular values are between about 0.7 and 1.2.
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    x = (matrix if wide else matrix.T).to(dtype)
    x = x / (x.norm() + 1e-7)
    for _ in range(_ROUNDS):
        gram = x @ x.T
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    found: Tensor = (x if wide else x.T).to(matrix.dtype)
    return found


def product_dtype(device: torch.device) -> torch.dtype:
    """What Muon computes products in: bfloat16 if the device multiplies it natively, else float32."""
    return torch.bfloat16 if choose(device) == "bf16" else torch.float32


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for groups with `orthogonal`, SGD with Nesterov momentum for the others.

    torch.optim.Muon takes matrices only. Here a convolution's filters are the rows of a matrix, and one optimizer holds
    all parameters, so that one schedule, one checkpoint and one learning rate serve them.

    An orthogonal update of a matrix [m, n] is scaled by max(1, m / n) ** 0.5, so that its size relative to the weights
    does not depend on the shape.

    Args:
        lr: learning rate; about 0.02 to 0.3, since an update's singular values are about 1.
        momentum: of both kinds.
        weight_decay: decoupled (weights shrink by lr * weight_decay) for orthogonal groups, as in SGD for the others.
        norm: keep each matrix of an orthogonal group at the norm m ** 0.5. Only for weights followed by a
            normalisation, so that their scale does not matter.

    Products are computed in `product_dtype` of the device.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.0,
        norm: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "orthogonal": False})
        self._norm, self._dtype = norm, product_dtype(self.param_groups[0]["params"][0].device)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Make one step, or none if the attribute `found_inf` is a tensor that is not 0, as in a fused optimizer."""
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            gradients = [parameter.grad for parameter in parameters]
            buffers = [self._buffer(parameter) for parameter in parameters]
            changing = [*parameters, *buffers]
            before = None if found_inf is None else [tensor.clone() for tensor in changing]
            if not group["orthogonal"] and group["weight_decay"]:
                gradients = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, gradients)
            updates = torch._foreach_add(gradients, buffers, alpha=group["momentum"])
            if group["orthogonal"]:
                self._move(parameters, updates, group)
            else:
                torch._foreach_add_(parameters, updates, alpha=-group["lr"])
            if found_inf is not None and before is not None:  # chosen on the device, so that the host need not wait
                for tensor, old in zip(changing, before, strict=True):
                    torch.where(found_inf == 0, tensor, old, out=tensor)

    def _buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        return buffer

    def _move(self, parameters: list[Tensor], updates: Iterable[Tensor], group: dict[str, Any]) -> None:
        rate, decay = group["lr"], group["weight_decay"]
        if decay:
            torch._foreach_mul_(parameters, 1 - rate * decay)
        for parameter, update in zip(parameters, updates, strict=True):
            matrix = orthogonal(update.flatten(1), self._dtype)
            rows, columns = matrix.shape
            if self._norm:
                parameter.mul_(rows**0.5 / parameter.norm().clamp(min=1e-12))
            parameter.add_(matrix.reshape(parameter.shape), alpha=-rate * max(1, rows / columns) ** 0.5)
