"""The layers of trained encoders spread over the processes (FSDP).

Each process holds a share of their weights, gradients and optimiser state. It is torch's ``fully_shard``, layer by
layer; Accelerate's own way to it leaves out processors, and says nothing. Only the transformer layers of encoders that
are trained are spread, nine tenths of their weights. HuBERT's other parts cannot be: its encoder writes into its
input, and transformers finds the hidden states to hand out by the name of the model's class, which ``fully_shard``
changes. What is not spread is whole in each process, with its gradients averaged. What leaves the processes, as a
checkpoint or a model, is whole, the same as without.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from saysee.training.objective import Objective


def shard_encoders(objective: Objective, device: torch.device) -> None:
    """Spreads the transformer layers of the trained encoders over all processes; before their optimiser is made."""
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    hubert, vision = objective.model.speech_encoder.hubert, objective.model.image_encoder.clip.vision_model
    for encoder in (hubert, vision):
        if any(parameter.requires_grad for parameter in encoder.parameters()):
            for layer in encoder.encoder.layers:
                fully_shard(layer, mesh=mesh, reshard_after_forward=True)


def average_gradients(objective: Objective) -> None:
    """Averages over the processes the gradients of what is not spread; the encoders' are averaged in the backward."""
    for parameter in objective.parameters():
        if parameter.requires_grad and parameter.grad is not None and not isinstance(parameter, DTensor):
            distributed.all_reduce(parameter.grad)
            parameter.grad /= distributed.get_world_size()


class WholeCopy:
    """A copy of a spread objective that the first process keeps on the processor, to score and to save.

    Args:
        objective: before it is spread.
        is_first: this process keeps the copy.
        device: where it scores.
    """

    def __init__(self, objective: Objective, is_first: bool, device: torch.device) -> None:
        self._copy = copy.deepcopy(objective) if is_first else None
        self._device = device

    def take(self, objective: Objective) -> Objective:
        """The copy, with the weights as they are now, on its device; the objective itself where this is not the first.

        All processes must call it.
        """
        frozen = {name for name, parameter in objective.named_parameters() if not parameter.requires_grad}
        weights = {name: value for name, value in objective.state_dict().items() if name not in frozen}
        weights = whole(weights)
        if self._copy is None:
            return objective
        self._copy.load_state_dict(weights, strict=False)
        return self._copy.to(self._device)

    def put_back(self) -> None:
        """Frees the device of the copy."""
        if self._copy is not None:
            self._copy.to("cpu")


def whole(state: Any) -> Any:
    """A nested state with every spread tensor made whole, on the processor. All processes must call it."""
    if isinstance(state, DTensor):
        return state.full_tensor().cpu()
    if isinstance(state, Mapping):
        return {key: whole(value) for key, value in state.items()}
    if isinstance(state, list):
        return [whole(value) for value in state]
    return state


def spread_like(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor spread as a parameter is; as it is where the parameter is whole."""
    if not isinstance(parameter, DTensor) or value.dim() == 0:  # the optimiser's count of steps is a scalar
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


def spread_weights(weights: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Whole weights spread as a module's are."""
    parameters = dict(module.named_parameters())
    return {name: spread_like(value, parameters.get(name, value)) for name, value in weights.items()}


def spread_optimizer_state(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The whole state of an optimiser, as its ``state_dict`` gives it, spread as its parameters are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    spread = {
        number: {name: spread_like(value, parameters[number]) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    return {**state, "state": spread}
