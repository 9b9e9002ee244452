"""Indexing on several machines: workers of a Ray cluster read, encode and write the files (extra ``ray``).

This process walks the source and hands out parts of it. A worker commits each batch of its part in a transaction of its
own. Rows are identified by kind and path, so the part of a worker that has died is just given to another one.
"""

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from itertools import chain, islice
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from saysee.encoding.encoder import Encoder
from saysee.errors import ConfigError, SaySeeError
from saysee.media.source import printable
from saysee.search.index.batches import Done, Part, update_part
from saysee.search.index.index import open_store
from saysee.search.index.store import KINDS

logger = logging.getLogger(__name__)

_DEATHS = 3
"""Workers that may die one after another over the same part, or at their start. A choice."""
_PATIENCE_SECONDS = 60
"""After so long without a free worker, that is logged. A choice."""
_CONNECT_SECONDS = 5
_STORE_BYTES = 80 * 2**20
"""Ray's shared memory on this machine, nearly the least that it takes: no file goes through it."""


class _Worker:
    """An Encoder in a process of the cluster."""

    def load(self, model: str, fingerprints: dict[str, str], device: str, threads: int | None) -> str | None:
        """Loads the model; returns what is wrong with it, None if nothing."""
        if device == "cpu":
            torch.set_num_threads(1)  # each core has a worker
        try:
            self._encoder = Encoder(model, device, workers=threads)
        except (SaySeeError, OSError) as error:
            return f"{error}; all machines of the cluster need the model at the same path, or by its hub name"
        if {kind: self._encoder.fingerprint(kind) for kind in KINDS} != fingerprints:
            return f"{model}: a machine of the cluster has another model there; copy the same one to all machines"
        return None

    def update(self, to: str, part: Part) -> Done | str:
        """Brings a part up to date; returns what stops the whole run, if anything does."""
        try:
            return update_part(self._encoder, to, part)
        except SaySeeError as error:
            return str(error)


def update_on_cluster(
    address: str, device: str, threads: int | None, encoder: Encoder, to: str, parts: Iterator[Part]
) -> Iterator[Done]:
    """Updates parts of an index by workers of a Ray cluster: one for each GPU, else for each CPU core.

    A part is taken when a worker becomes free. A worker that dies is replaced, on another machine if need be, and its
    part is done again. Nothing is started where there is no part.

    Args:
        address: empty or "local" starts Ray on this machine; else "auto" (the cluster that this machine is part of),
            host:port, or ray://host:port.
        device: "cpu", "cuda", or "auto" for GPUs where the cluster has any.
        threads: of each worker that decode; None: one beside a CPU core, those of an encoder beside a GPU.
        encoder: its model is at the same path on all machines, or of the hub.

    Raises SaySeeError if there is no cluster, or none with such devices; the model cannot be loaded there; the index
    cannot be written; worker after worker dies.
    """
    if (first := next(parts, None)) is None:
        return
    name = f"--ray {address}".strip()
    with redirect_stdout(sys.stderr):  # Ray prints there what happens to its machines
        try:
            gpus, cpus = _connect(name, address)
            on_gpu = device == "cuda" or (device == "auto" and gpus > 0)
            if not (count := gpus if on_gpu else cpus):
                raise ConfigError(f"{name}: the cluster has {cpus} CPUs and {gpus} GPUs; add some, or see --device")
            model = os.path.abspath(encoder.name) if os.path.isdir(encoder.name) else encoder.name
            prints = {kind: encoder.fingerprint(kind) for kind in KINDS}
            load = (model, prints, "cuda", threads) if on_gpu else (model, prints, "cpu", threads or 1)
            if to.startswith("lance:"):
                to = open_store(to).place  # workers have another working directory
            worker = ray.remote(num_cpus=1, num_gpus=int(on_gpu))(_Worker)
            yield from _Work(name, worker, load, to, chain([first], parts)).done_by(count)
        finally:
            ray.shutdown()  # the workers end too


def _connect(name: str, address: str) -> tuple[int, int]:
    """Connects to a cluster, or starts one; returns its numbers of GPUs and CPUs."""
    options: dict[str, Any] = {"address": address}
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns of it
    try:
        if address in ("", "local"):
            options = {"address": "local", "include_dashboard": False, "object_store_memory": _STORE_BYTES}
        elif address != "auto":  # Ray itself would try for minutes
            place = urlsplit(address if "://" in address else f"//{address}")
            if not place.port:
                raise ValueError("no port in this address")
            socket.create_connection((place.hostname or "", place.port), _CONNECT_SECONDS).close()
        ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError, RayError) as error:
        raise SaySeeError(
            f"{name}: cannot connect to a Ray cluster ({_line(error)}); start one by 'ray start --head', or give "
            "--ray alone to use this machine"
        ) from error
    found = ray.cluster_resources()
    return int(found.get("GPU", 0)), int(found.get("CPU", 0))


class _Task(NamedTuple):
    """What a worker is doing."""

    worker: Any
    part: Part | None  # None: it loads the model
    deaths: int  # of workers that did it before


class _Work:
    """What is to be done, and what is being done."""

    def __init__(self, name: str, worker: Any, load: tuple[Any, ...], to: str, parts: Iterator[Part]) -> None:
        self._name, self._worker, self._load, self._to, self._parts = name, worker, load, to, parts
        self._todo: list[tuple[Part, int]] = []  # each with how many workers have died over it
        self._tasks: dict[Any, _Task] = {}

    def done_by(self, count: int) -> Iterator[Done]:
        """Starts up to so many workers and yields what they have done."""
        self._todo = [(part, 0) for part in islice(self._parts, count)]
        for _ in self._todo:
            self._start(0)
        while self._has_more() or self._is_busy():
            calls, _ = ray.wait(list(self._tasks), timeout=_PATIENCE_SECONDS)
            if not calls and not self._is_busy():
                logger.warning("%s: no worker has started yet; are all of its CPUs or GPUs in use?", self._name)
            for call in calls:
                done = self._result(call)
                if done is not None:
                    yield done

    def _is_busy(self) -> bool:
        return any(task.part is not None for task in self._tasks.values())

    def _has_more(self) -> bool:
        if not self._todo:
            self._todo = [(part, 0) for part in islice(self._parts, 1)]
        return bool(self._todo)

    def _start(self, deaths: int) -> None:
        worker = self._worker.remote()
        self._tasks[worker.load.remote(*self._load)] = _Task(worker, None, deaths)

    def _result(self, call: Any) -> Done | None:
        """Takes the result of a call, and gives its worker, or another in its place, something to do."""
        task = self._tasks.pop(call)
        try:
            result = ray.get(call)
        except RayTaskError as error:
            raise SaySeeError(f"{self._name}: a worker has failed ({_line(error.cause)})") from error
        except RayError as error:  # the worker is dead, or can no longer be reached
            self._replace(task, error)
            return None
        if isinstance(result, str):
            raise SaySeeError(f"{self._name}: {result}")
        if self._has_more():
            part, deaths = self._todo.pop()
            self._tasks[task.worker.update.remote(self._to, part)] = _Task(task.worker, part, deaths)
        # else the last reference to the worker goes, which ends it
        return result  # type: ignore[no-any-return]

    def _replace(self, task: _Task, error: RayError) -> None:
        what = (
            f"processing the files from {printable(task.part.listed[0].item.path)}"
            if task.part
            else "loading the model"
        )
        if task.deaths + 1 == _DEATHS:
            raise SaySeeError(
                f"{self._name}: {_DEATHS} workers in a row died while {what} ({_line(error)}); check that they have "
                "enough memory, and run the command again: it resumes"
            ) from error
        logger.warning("%s: a worker died while %s (%s); retrying", self._name, what, _line(error))
        if task.part is not None:
            self._todo.append((task.part, task.deaths + 1))
        self._start(0 if task.part else task.deaths + 1)


def _line(error: BaseException) -> str:
    """The first line of an error message."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
