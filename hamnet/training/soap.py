"""SOAP: Adam in the eigenbasis of the gradients' covariances.

Vyas, Morwani, Zhao, Kwun, Shapira, Brandfonbrener, Janson, Kakade (2024), arXiv:2409.11321.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["SOAP"]


class SOAP(torch.optim.Optimizer):
    """Weights whose last two axes are (in, out) are rotated matrix by matrix; all others see plain Adam.

    A weight of the network is a stack of small matrices, one for each irrep, and each has covariances of its own:
    flattened to one large matrix, as general implementations do, irreps that must not mix would share them.

    Parameters
    ----------
    betas : decay of the running averages of gradient and squared gradient.
    covariance_decay : of the running covariances. every : steps between renewals of their eigenvectors.
    smallest, largest : matrices with a side out of this range are left to Adam: rotating them gains nothing, or costs
        too much.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        covariance_decay: float = 0.95,
        every: int = 10,
        smallest: int = 4,
        largest: int = 256,
    ) -> None:
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        settings |= {"covariance_decay": covariance_decay, "every": every, "smallest": smallest, "largest": largest}
        super().__init__(params, settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    _update(weight, weight.grad, self.state[weight], group)
        return loss


def _is_rotated(weight: Tensor, group: dict[str, Any]) -> bool:
    return (
        weight.dim() >= 2 and group["smallest"] <= min(weight.shape[-2:]) <= max(weight.shape[-2:]) <= group["largest"]
    )


def _update(weight: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    (b1, b2), decay = group["betas"], group["covariance_decay"]
    rotated = _is_rotated(weight, group)
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32)
        state["mean"], state["square"] = torch.zeros_like(weight), torch.zeros_like(weight)
        if rotated:
            for side, covariance in _covariances(gradient).items():
                state[f"{side}_covariance"] = (1 - decay) * covariance
                # Largest first: the power iterations below settle column after column.
                state[f"{side}_basis"] = torch.linalg.eigh(covariance).eigenvectors.flip(-1).contiguous()
    state["step"] += 1
    step = int(state["step"])
    state["mean"].lerp_(gradient, 1 - b1)
    here, mean = gradient, state["mean"]
    if rotated:
        here, mean = (_into(x, state) for x in (here, mean))
    state["square"].mul_(b2).addcmul_(here, here, value=1 - b2)
    size = (state["square"] / (1 - b2**step)).sqrt_().add_(group["eps"])
    change = mean / (1 - b1**step) / size
    if rotated:
        change = state["in_basis"] @ change @ state["out_basis"].mT
    if group["weight_decay"]:
        weight.mul_(1 - group["lr"] * group["weight_decay"])
    weight.sub_(change, alpha=group["lr"])
    if rotated:
        for side, covariance in _covariances(gradient).items():
            state[f"{side}_covariance"].lerp_(covariance, 1 - decay)
            if step % group["every"] == 0:
                # One power iteration: the basis follows the covariance, and needs no new start.
                moved = state[f"{side}_covariance"] @ state[f"{side}_basis"]
                state[f"{side}_basis"] = torch.linalg.qr(moved).Q


def _covariances(gradient: Tensor) -> dict[str, Tensor]:
    return {"in": gradient @ gradient.mT, "out": gradient.mT @ gradient}


def _into(matrix: Tensor, state: dict[str, Any]) -> Tensor:
    """`matrix` in the eigenbases of both of its sides."""
    return state["in_basis"].mT @ matrix @ state["out_basis"]
