"""The processes that train together: one, or several started by torchrun.

Each process trains on its share of every batch and holds a copy of the weights (DistributedDataParallel). Rank 0 also
scores, writes and logs. torchrun supervises them: when one ends, it stops the others within half a minute.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import distributed

from saysee.encoding.precision import Arithmetic
from saysee.errors import ConfigError, LostProcessError
from saysee.signals import EXIT_INTERRUPTED

Result = TypeVar("Result")

STEP_TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others within a step, such as for the slowest disk."""
RANK_0_TIMEOUT = timedelta(days=7)
"""How long the others wait while rank 0 scores, computes features or writes. The connection to a process that is killed
breaks at once, so this does not delay the end of the run."""


class Processes:
    """This process among those that train together; ``rank`` counts them from 0, and ``is_first`` is rank 0.

    Raises ConfigError if torchrun has started several processes that cannot find each other, or Accelerate is
    configured to use FSDP.
    """

    def __init__(self, arithmetic: Arithmetic, cpu: bool) -> None:
        if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
            raise ConfigError("Accelerate is configured to use FSDP, which is not supported; start with torchrun")
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        AcceleratorState._reset_state()  # otherwise Accelerate keeps the arithmetic of the process's first trainer
        self.accelerator = Accelerator(
            mixed_precision="bf16" if arithmetic == "bf16" else "no",
            # Without a GPU of CUDA, Accelerate connects several processes only when it is asked for the CPU, and takes
            # the GPU of a Mac, whose draws (dropout) could be neither repeated nor resumed.
            cpu=cpu or not torch.cuda.is_available(),
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=STEP_TIMEOUT),
                # Which parameters a step uses depends on the tasks in force.
                DistributedDataParallelKwargs(find_unused_parameters=True),
            ],
        )
        self.rank, self.count = self.accelerator.process_index, self.accelerator.num_processes
        self.is_first = self.rank == 0
        if several and self.count == 1:
            raise ConfigError("torchrun started several processes, but each is alone; check that RANK is set")
        if self.count > 1:
            atexit.register(_leave_group)
        # Plain values go over the CPU, whatever the gradients go over.
        self._group = distributed.new_group(backend="gloo", timeout=RANK_0_TIMEOUT) if self.count > 1 else None

    def seed_draws(self, seed: int) -> None:
        """Seeds torch's draws (dropout, noise), differently in each process; rank 0 draws what a process alone does."""
        torch.manual_seed(seed + (self.rank << 32))

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """The mean of each value over the processes; all must have the same keys."""
        if self.count == 1:
            return dict(values)
        sums = torch.tensor(list(values.values()), dtype=torch.float64)
        distributed.all_reduce(sums, group=self._group)
        return dict(zip(values, (sums / self.count).tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return flag if self.count == 1 else self.mean({"flag": float(flag)})["flag"] > 0

    def gather(self, value: Any) -> list[Any]:
        """The value of each rank: plain values and CPU tensors."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value, group=self._group)
        return values

    def on_rank_0(self, action: Callable[[], Result]) -> Result:
        """Runs ``action`` on rank 0 and returns its result (plain values) on every rank."""
        if self.count == 1:
            return action()
        results = [action() if self.is_first else None]
        distributed.broadcast_object_list(results, src=0, group=self._group)
        return results[0]  # type: ignore[return-value]

    def on_rank_0_first(self, action: Callable[[], Result]) -> Result:
        """Runs ``action`` on rank 0 and then on the others, which find on disk what rank 0 has written."""
        of_rank_0: list[Result] = []
        self.on_rank_0(lambda: of_rank_0.append(action()))
        return of_rank_0[0] if of_rank_0 else action()

    @contextmanager
    def ending_together(self) -> Iterator[None]:
        """Around everything in which processes wait for each other: ends this one when another has ended.

        Raises LostProcessError if the connection to another process broke; SystemExit if this one is interrupted, and
        rank 0 reports it.
        """
        try:
            yield
        except KeyboardInterrupt:
            if not self.is_first:
                raise SystemExit(EXIT_INTERRUPTED) from None
            raise
        except RuntimeError as error:
            # Errors of gloo have no class of their own.
            is_lost = isinstance(error, distributed.DistError) or "gloo" in str(error).lower()
            if self.count == 1 or not is_lost:
                raise
            raise LostProcessError(
                f"another of the {self.count} processes has ended; if it printed no reason, it was killed: start all "
                "again with --resume auto"
            ) from error


def _leave_group() -> None:
    """Ends the threads of the process group: the interpreter aborts if they are running when it exits."""
    if distributed.is_initialized():
        distributed.destroy_process_group()
