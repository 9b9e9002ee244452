"""What a checkpoint holds of a run, so that a resumed run ends as if it had never been broken off."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from saysee.data.loader import ResumableLoader
from saysee.errors import CheckpointError
from saysee.training.checkpoint import load_checkpoint
from saysee.training.count import RunCount
from saysee.training.objective import Objective
from saysee.training.processes import Processes


@dataclass(frozen=True)
class RunState:
    """The parts of a run that move while it trains."""

    objective: Objective
    optimizer: torch.optim.Optimizer
    loader: ResumableLoader[Any]
    progress: RunCount
    processes: Processes

    def take(self) -> dict[str, Any]:
        """Everything as tensors and plain values. All processes must call it."""
        frozen = {name for name, parameter in self.objective.named_parameters() if not parameter.requires_grad}
        weights = {name: value for name, value in self.objective.state_dict().items() if name not in frozen}
        draws = self.processes.gather((torch.get_rng_state(), torch.cuda.get_rng_state_all()))
        return {
            "weights": weights,
            "optimizer": self.optimizer.state_dict(),
            "loader": self.loader.state_dict(),
            "progress": self.progress.state_dict(),
            "torch_rng": draws[0][0],
            "cuda_rng": draws[0][1],
            "rng_of_others": draws[1:],
        }

    def put(self, checkpoint: Path, seed: int) -> int:
        """Goes to what :meth:`take` gave. All processes must call it.

        Args:
            checkpoint: its folder.
            seed: of the draws, where the run had another number of processes: theirs cannot be those that would have
                come.

        Returns:
            How many processes the run had.

        Raises:
            CheckpointError: it cannot be read, or is of another model or another order of the data.
        """
        state = load_checkpoint(checkpoint)
        missing, unexpected = self.objective.load_state_dict(state["weights"], strict=False)
        trained = {name for name, parameter in self.objective.named_parameters() if parameter.requires_grad}
        if unexpected or trained & set(missing):
            raise CheckpointError(f"{checkpoint} is of another model; give another --output")
        self.optimizer.load_state_dict(state["optimizer"])
        self.loader.load_state_dict(state["loader"])
        self.progress.load_state_dict(state["progress"])
        draws = [(state["torch_rng"], state["cuda_rng"]), *state.get("rng_of_others", [])]
        if len(draws) != self.processes.count:
            self.processes.seed_draws(seed + self.progress.step)
            return len(draws)
        of_processor, of_devices = draws[self.processes.rank]
        torch.set_rng_state(of_processor)
        if of_devices:
            torch.cuda.set_rng_state_all(of_devices)
        return len(draws)
