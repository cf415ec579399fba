"""The network, from features to Hamiltonian blocks. `MODELS` names what a configuration may ask for."""

from __future__ import annotations

from .hamiltonian import HamiltonianModel, ModelConfig

__all__ = ["MODELS", "HamiltonianModel", "ModelConfig"]

MODELS: dict[str, type[HamiltonianModel]] = {"edge-frame": HamiltonianModel}
