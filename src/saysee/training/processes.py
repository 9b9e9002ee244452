"""The processes that train together: one, or several that torchrun has started.

Each has its part of every batch and a copy of the weights (or a share of them, see ``sharding``). The first one also
scores, writes and speaks; the others wait for it without a limit, as long as it gives signs of life.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import distributed
from torch.distributed.distributed_c10d import PrefixStore, Store

from saysee.encoding.precision import Arithmetic
from saysee.errors import ConfigError, LostProcessError, SaySeeError
from saysee.training.watch import EXIT_LOST, Watch, lost

Result = TypeVar("Result")

COLLECTIVE_TIMEOUT = timedelta(minutes=10)
"""How long processes that live may wait for each other within a step: for the slowest disk, say. A dead process is
noticed sooner, by :class:`saysee.training.watch.Watch`."""
REASON_SECONDS = 3.0
"""How long to wait for the word of a process whose connection is gone: it may have told why it ends."""
EXIT_INTERRUPTED = 130


class Processes:
    """This process among those that train together.

    Args:
        arithmetic: of the training.
        cpu: stay on the processor.

    Raises:
        ConfigError: torchrun has started several processes, but they cannot find each other; or Accelerate's own
            FSDP is asked for, which does not go on a processor.

    Attributes:
        accelerator: device, arithmetic and data parallelism.
        rank: which process this is, from 0.
        count: how many there are.
        is_first: this is the one that scores, writes and speaks.
    """

    _groups = 0
    """Trainings of several processes that this process has begun: each has a store of its own."""

    def __init__(self, arithmetic: Arithmetic, cpu: bool) -> None:
        if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
            raise ConfigError("accelerate was told to use FSDP; start by torchrun with --training.shard true instead")
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        AcceleratorState._reset_state()  # Accelerate keeps the arithmetic of the first trainer of a process otherwise
        self.accelerator = Accelerator(
            mixed_precision="bf16" if arithmetic == "bf16" else "no",
            # Without a GPU, Accelerate makes several processes know of each other only when told that there is none.
            cpu=cpu or (several and not torch.cuda.is_available()),
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=COLLECTIVE_TIMEOUT),
                # Which parameters a step uses depends on the tasks in force.
                DistributedDataParallelKwargs(find_unused_parameters=True),
            ],
        )
        self.rank, self.count = self.accelerator.process_index, self.accelerator.num_processes
        self.is_first = self.rank == 0
        if several and self.count == 1:
            raise ConfigError(
                "torchrun started several processes, but each is alone; see that RANK and LOCAL_RANK are set"
            )
        self._results = 0
        self._store: Store | None = None
        self._watch: Watch | None = None
        if self.count > 1:
            self._store = self._open_store()
            self._watch = Watch(self._store, self.rank, self.count)

    def seed_draws(self, seed: int) -> None:
        """Seeds torch's draws (dropout, noise): others in each process, in the first those of a process alone."""
        torch.manual_seed(seed + (self.rank << 32))

    def mean(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Each figure's mean over the processes; all must have the same ones."""
        if self.count == 1:
            return dict(figures)
        values = torch.tensor(list(figures.values()), dtype=torch.float64, device=self.accelerator.device)
        distributed.all_reduce(values)
        return dict(zip(figures, (values / self.count).tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return flag if self.count == 1 else self.mean({"flag": float(flag)})["flag"] > 0

    def gather(self, value: Any) -> list[Any]:
        """What each process has, in their order; plain values and tensors on the processor."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value)
        return values

    def first_does(self, action: Callable[[], Result]) -> Result:
        """Lets the first process do something, however long it takes; all get what it gives (plain values)."""
        if self._store is None:
            return action()
        key = f"result {self._results}"
        self._results += 1
        if self.is_first:
            result = action()
            self._store.set(key, pickle.dumps(result).hex())
            return result
        assert self._watch is not None
        while not self._store.check([key]):
            if self._watch.was_told():
                raise SystemExit(EXIT_LOST)
            time.sleep(0.05)
        answer: Result = pickle.loads(bytes.fromhex(self._store.get(key).decode()))
        return answer

    def first_then_others(self, action: Callable[[], Result]) -> Result:
        """Lets the first process do something, and then the others, who find what it has left on the disk."""
        of_first: list[Result] = []
        self.first_does(lambda: of_first.append(action()))
        return of_first[0] if of_first else action()

    @contextmanager
    def ending_together(self) -> Iterator[None]:
        """Within a ``with`` block: when one process ends for a reason that it tells, the others end in silence.

        Raises:
            LostProcessError: another process is gone without a word.
            SystemExit: another process has told, or tells, why it ends.
        """
        if self._watch is None:
            yield
            return
        try:
            yield
        except (SaySeeError, KeyboardInterrupt) as error:
            self._watch.tell_end()
            if not self._watch.may_tell():
                raise SystemExit(EXIT_INTERRUPTED if isinstance(error, KeyboardInterrupt) else EXIT_LOST) from None
            raise
        except RuntimeError as error:
            if not _of_a_connection(error):
                self._watch.tell_end()
                raise
            if self._watch.was_told(REASON_SECONDS) or not self._watch.may_tell():
                raise SystemExit(EXIT_LOST) from None
            raise LostProcessError(lost(f"another of the {self.count} processes is gone (was it killed?)")) from error
        except Exception:
            self._watch.tell_end()
            raise

    def close(self) -> None:
        """This training is over: the processes need not watch each other any more."""
        if self._watch is not None:
            self._watch.stop()

    def _open_store(self) -> Store:
        # A connection beside torch's own, which may be taken by a long wait.
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = distributed.TCPStore(  # type: ignore[attr-defined]  # public all the same
            address, port, is_master=False, wait_for_workers=False
        )
        Processes._groups += 1
        start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return PrefixStore(f"saysee {start} {Processes._groups}", store)


def _of_a_connection(error: RuntimeError) -> bool:
    """Whether an error says that another process cannot be reached; gloo's have no kind of their own."""
    return isinstance(error, distributed.DistError) or "gloo" in str(error).lower()
