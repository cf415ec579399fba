"""SOAP: Adam in the eigenbasis of the gradients' covariances.

Vyas, Morwani, Zhao, Kwun, Shapira, Brandfonbrener, Janson, Kakade (2024), arXiv:2409.11321.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor

__all__ = ["SOAP"]


class SOAP(torch.optim.Optimizer):
    """Weights whose last two axes are (in, out) are rotated matrix by matrix; all others see plain Adam.

    A weight of the network is a stack of small matrices, one for each irrep, and each has covariances of its own:
    flattened to one large matrix, as general implementations do, irreps that must not mix would share them. The
    matrices of all weights that are of one shape are kept in one stack, so that a step is a few products of stacks.

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
        self._stack_of: dict[Tensor, _Stack] = {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._stack_of.clear()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_age: dict[int, list[Tensor]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    state = self.state[weight]
                    if not state:
                        state.update(_first_state(weight.grad, group))
                    state["step"] += 1
                    by_age.setdefault(state["step"], []).append(weight)
            for age, weights in by_age.items():
                self._update(weights, age, group)
        return loss

    def _update(self, weights: list[Tensor], age: int, group: dict[str, Any]) -> None:
        """One step of weights that have seen equally many."""
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])  # type: ignore[attr-defined]
        plain = [weight for weight in weights if "in_basis" not in self.state[weight]]
        stacks = self._stacks([weight for weight in weights if "in_basis" in self.state[weight]])
        gradients = [stack.gradient() for stack in stacks]
        turned = [s.in_basis.mT @ gradient @ s.out_basis for s, gradient in zip(stacks, gradients, strict=True)]
        changes = [torch.zeros_like(gradient) for gradient in turned]
        averages = [self.state[weight] for weight in plain] + [{"mean": s.mean, "square": s.square} for s in stacks]
        torch._fused_adam_(  # type: ignore[attr-defined]
            plain + changes,
            [weight.grad for weight in plain] + turned,  # type: ignore[arg-type]
            [average["mean"] for average in averages],
            [average["square"] for average in averages],
            [],
            [torch.tensor(float(age), device=weights[0].device)] * len(averages),
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=0.0,
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )
        for stack, gradient, change in zip(stacks, gradients, changes, strict=True):
            stack.add(stack.in_basis @ change @ stack.out_basis.mT)
            stack.follow(gradient, group["covariance_decay"])
            if age % group["every"] == 0:
                stack.renew()

    def _stacks(self, weights: list[Tensor]) -> list[_Stack]:
        """The matrices of `weights`, stacked by shape. What the state of each weight has is a part of its stack."""
        alike: dict[tuple[int, ...], list[Tensor]] = {}
        for weight in weights:
            alike.setdefault(weight.shape[-2:], []).append(weight)
        stacks = []
        for members in alike.values():
            stack = self._stack_of.get(members[0])
            if stack is None or not stack.is_of(members):
                stack = _Stack.of(members, [self.state[weight] for weight in members])
                self._stack_of |= dict.fromkeys(members, stack)
            stacks.append(stack)
        return stacks


def _first_state(gradient: Tensor, group: dict[str, Any]) -> dict[str, Any]:
    state: dict[str, Any] = {"step": 0, "mean": torch.zeros_like(gradient), "square": torch.zeros_like(gradient)}
    sides = gradient.shape[-2:]
    if gradient.dim() >= 2 and group["smallest"] <= min(sides) <= max(sides) <= group["largest"]:
        for side, covariance in (("in", gradient @ gradient.mT), ("out", gradient.mT @ gradient)):
            state[f"{side}_covariance"] = (1 - group["covariance_decay"]) * covariance
            state[f"{side}_basis"] = _eigenbasis(covariance)
    return state


def _eigenbasis(covariance: Tensor) -> Tensor:
    """Eigenvectors, largest first: power iterations settle column after column.

    In float64 and of unit size: on squares of small gradients the float32 routine was seen not to converge.
    """
    wide = covariance.double()
    size = wide.abs().amax(dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    return torch.linalg.eigh(wide / size).eigenvectors.flip(-1).to(covariance).contiguous()


@dataclass(frozen=True, slots=True)
class _Stack:
    """Matrices (n, in, out) of several weights, one after another: `mean` and `square` of the turned gradient, and for
    each side the covariance of the gradient and its eigenvectors (n, side, side)."""

    weights: list[Tensor]
    mean: Tensor
    square: Tensor
    in_covariance: Tensor
    out_covariance: Tensor
    in_basis: Tensor
    out_basis: Tensor

    @classmethod
    def of(cls, weights: list[Tensor], states: list[dict[str, Any]]) -> Self:
        stacked: dict[str, Tensor] = {}
        for name in (f.name for f in fields(cls) if f.name != "weights"):
            parts = [state[name] for state in states]
            stacked[name] = torch.cat([part.reshape(-1, *part.shape[-2:]) for part in parts])
            views = stacked[name].split([part.shape[:-2].numel() for part in parts])
            for state, part, view in zip(states, parts, views, strict=True):
                state[name] = view.view(part.shape)
        return cls(weights, **stacked)

    def is_of(self, weights: list[Tensor]) -> bool:
        return len(weights) == len(self.weights) and all(a is b for a, b in zip(weights, self.weights, strict=True))

    def gradient(self) -> Tensor:
        return torch.cat([w.grad.reshape(-1, *w.shape[-2:]) for w in self.weights])  # type: ignore[union-attr]

    def add(self, change: Tensor) -> None:
        parts = change.split([weight.shape[:-2].numel() for weight in self.weights])
        views = [part.view(weight.shape) for part, weight in zip(parts, self.weights, strict=True)]
        torch._foreach_add_(self.weights, views)  # type: ignore[attr-defined]

    def follow(self, gradient: Tensor, decay: float) -> None:
        """The covariances with those of a new gradient."""
        self.in_covariance.baddbmm_(gradient, gradient.mT, beta=decay, alpha=1 - decay)
        self.out_covariance.baddbmm_(gradient.mT, gradient, beta=decay, alpha=1 - decay)

    def renew(self) -> None:
        """One power iteration: the bases follow the covariances, and need no new start."""
        turns = []
        for covariance, basis in ((self.in_covariance, self.in_basis), (self.out_covariance, self.out_basis)):
            moved = torch.linalg.qr(covariance @ basis).Q
            turns.append(moved.mT @ basis)
            basis.copy_(moved)
        self.mean.copy_(turns[0] @ self.mean @ turns[1].mT)
