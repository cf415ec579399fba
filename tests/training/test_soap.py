"""The optimiser: what its rotations must leave alone, and what they are for."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor

from hamnet.training.soap import SOAP

N_STEPS = 35


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def path(kind: type[torch.optim.Optimizer], gradients: Tensor) -> Tensor:
    """Where a weight that begins at zero comes to."""
    weight = torch.zeros_like(gradients[0]).requires_grad_()
    optimiser = kind([weight], lr=1e-2, betas=(0.9, 0.99))  # type: ignore[call-arg]
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimiser.step()
    return weight.detach()


def test_vectors_and_thin_matrices_see_adam():
    for shape in ((7,), (3, 40)):
        gradients = random(N_STEPS, *shape)
        torch.testing.assert_close(path(SOAP, gradients), path(torch.optim.Adam, gradients), rtol=1e-10, atol=1e-12)


def test_the_path_turns_with_the_channels():
    """Adam depends on the basis in which channels are written; in the eigenbasis of the gradients nothing does."""
    gradients = random(N_STEPS, 6, 5)
    left, right = (torch.linalg.qr(random(n, n, seed=2)).Q for n in (6, 5))

    def difference(kind: type[torch.optim.Optimizer]) -> float:
        turned = path(kind, left @ gradients @ right.T)
        return float((left @ path(kind, gradients) @ right.T - turned).abs().max())

    assert difference(SOAP) < 1e-6
    assert difference(torch.optim.Adam) > 1e-2


def test_matrices_of_a_stack_do_not_see_each_other():
    gradients = random(N_STEPS, 3, 6, 5)
    alone = torch.stack([path(SOAP, gradients[:, n]) for n in range(3)])
    torch.testing.assert_close(path(SOAP, gradients), alone, rtol=0, atol=1e-6)


def test_weights_of_one_shape_do_not_see_each_other_though_they_are_stacked():
    """Also where one of them has no gradient now and then."""
    gradients = random(N_STEPS, 3, 6, 5)
    missing = {(n, step) for n in range(3) for step in range(N_STEPS) if n and (step + n) % 4 == 0}
    weights = [torch.zeros(6, 5, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    optimiser = SOAP(weights, lr=1e-2)
    for step in range(N_STEPS):
        for n, weight in enumerate(weights):
            weight.grad = None if (n, step) in missing else gradients[step, n]
        optimiser.step()
    for n, weight in enumerate(weights):
        seen = [gradients[step, n] for step in range(N_STEPS) if (n, step) not in missing]
        torch.testing.assert_close(weight.detach(), path(SOAP, torch.stack(seen)), rtol=0, atol=1e-6)


def test_it_learns_channels_of_very_different_size_faster_than_adam():
    """Least squares on mixtures of inputs whose sizes span two orders of magnitude, a few at a time."""
    inputs = random(4000, 12) * torch.logspace(0, -2, 12, dtype=torch.float64)
    inputs = inputs @ torch.linalg.qr(random(12, 12, seed=3)).Q
    true = torch.linalg.lstsq(inputs, random(4000, 8, seed=4) * 0.1 + inputs @ random(12, 8, seed=5)).solution

    def left(kind: type[torch.optim.Optimizer]) -> float:
        weight = torch.zeros(12, 8, dtype=torch.float64, requires_grad=True)
        optimiser = kind([weight], lr=3e-2, betas=(0.9, 0.99))  # type: ignore[call-arg]
        for step in range(400):
            optimiser.param_groups[0]["lr"] = 3e-2 * (1 - step / 400)
            x = inputs[10 * step : 10 * step + 10]
            weight.grad = x.T @ (x @ (weight.detach() - true)) / len(x)
            optimiser.step()
        return float((weight.detach() - true).norm())

    assert left(SOAP) < 0.7 * left(torch.optim.Adam)


def test_a_weight_without_gradient_stays():
    weight = torch.ones(5, 5, requires_grad=True)
    SOAP([weight], lr=1.0).step()
    assert torch.equal(weight.detach(), torch.ones(5, 5))


def test_a_restored_optimiser_goes_on_as_if_never_stopped():
    gradients = random(N_STEPS, 6, 5)
    first = torch.zeros(6, 5, dtype=torch.float64, requires_grad=True)
    optimiser = SOAP([first], lr=1e-2)
    for gradient in gradients[:17]:
        first.grad = gradient
        optimiser.step()
    second = first.detach().clone().requires_grad_()
    restored = SOAP([second], lr=1e-2)
    restored.load_state_dict(deepcopy(optimiser.state_dict()))
    for weight, o in ((first, optimiser), (second, restored)):
        for gradient in gradients[17:]:
            weight.grad = gradient
            o.step()
    assert torch.equal(first, second)
