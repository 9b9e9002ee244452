"""One training step without its numbers: what it computes and what it holds.

The objective that training uses is built of fake tensors, which have a shape and a type and no contents, and takes one
step on fake inputs by the code that training steps by. So what is counted is what training does: which parts have
gradients, which tokens are rebuilt, what autocast copies. Nothing of their size is allocated, and no weight is read.

Masks, image ids and noise are real, as lengths and choices depend on them. All clips are as long as the longest but
one, which is a frame shorter: batches have padding, and without it HuBERT goes a way that takes less.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from saysee.data.loader import Batch
from saysee.encoding.precision import Arithmetic
from saysee.media.audio import SAMPLE_RATE
from saysee.model.dropout import plain_dropout
from saysee.settings.recipe import Recipe
from saysee.training.attention_kernel import attention_kernel
from saysee.training.chunks import slices
from saysee.training.feature_loader import FeatureBatch
from saysee.training.objective import Objective, build_model, build_tasks
from saysee.training.processes import Processes
from saysee.training.steps import Steps, TrainingBatch


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _attention_backward_flops(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))  # type: ignore[no-untyped-call]


_PROCESSOR_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}
"""Processors' own fused kernel, which torch's counter leaves out; from the shapes of its inputs."""


@dataclass(frozen=True)
class StepCount:
    """What an optimiser step takes.

    Attributes:
        flops: multiplications and additions of convolutions and matrix products, forward and backward.
        weights, gradients, optimizer: bytes that these hold.
        activations: the most bytes that a step holds beside them at once, its inputs among them.
        peak: the most bytes of all at once. Gradients come as activations go, so it is less than the sum.
    """

    flops: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    peak: int


def trace_step(
    recipe: Recipe, *, size: int, seconds: float, kept: bool, arithmetic: Arithmetic, as_accelerator: bool
) -> tuple[Objective, StepCount]:
    """What an optimiser step of one process takes, and the fake objective that it was counted on.

    Args:
        recipe: its encoders are given as configurations.
        size: pairs that the process takes of each batch.
        seconds: length of each clip.
        kept: features are kept.
        arithmetic: of the networks.
        as_accelerator: see :func:`count_step`.

    Raises:
        SaySeeError: the model cannot be what the recipe says.
    """
    objective, mode = fake_objective(recipe)
    processes = Processes(arithmetic, cpu=True)
    processes.accelerator.device_placement = False  # fake tensors cannot be moved, and are where they shall be
    steps = Steps(objective, recipe, processes)
    # Two batches, and two chunks of each, see what there is to see: the second finds the gradients of the first.
    accumulated = min(recipe.optimizer.accumulate, 2)
    chunk = max(rows.stop - rows.start for rows in slices(size, recipe.data.chunk_size or size))
    pairs = min(size, 2 * chunk)
    batches = [
        fake_batch(objective, mode, pairs, seconds, kept=kept, arithmetic=arithmetic) for _ in range(accumulated)
    ]
    count = count_step(
        steps,
        objective,
        batches,
        objective.weights_at(recipe.training.steps - 1),
        clip_norm=recipe.optimizer.clip_norm,
        arithmetic=arithmetic,
        as_accelerator=as_accelerator,
    )
    return objective, replace(count, flops=count.flops * recipe.optimizer.accumulate * size // (accumulated * pairs))


def fake_objective(recipe: Recipe) -> tuple[Objective, FakeTensorMode]:
    """What :class:`saysee.training.trainer.Trainer` trains, of fake tensors.

    Args:
        recipe: its encoders are given as configurations.
    """
    with torch.device("meta"):
        model = build_model(recipe)
        objective = Objective(model, build_tasks(recipe, model))
    # Not built of fake tensors at once: building copies layers, and a copy of a fake tensor writes where nothing is.
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes: dict[Tensor, Tensor] = {}  # a tensor that several modules hold stays one
    with mode:
        for module in objective.modules():
            for name, parameter in module.named_parameters(recurse=False):
                empty = torch.empty_like(parameter, device="cpu")
                fake = nn.Parameter(empty, requires_grad=parameter.requires_grad)
                setattr(module, name, fakes.setdefault(parameter, fake))
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, fakes.setdefault(buffer, torch.empty_like(buffer, device="cpu")))
    return objective.train(), mode


def fake_batch(
    objective: Objective, mode: FakeTensorMode, size: int, seconds: float, *, kept: bool, arithmetic: Arithmetic
) -> TrainingBatch:
    """A batch as the loader gives it, each clip of a picture of its own.

    Args:
        objective: of :func:`fake_objective`, with its ``mode``.
        size: B.
        seconds: length of the clips; the last one is a frame shorter.
        kept: a batch of kept features.
        arithmetic: of the training; hidden states are kept in its type.
    """
    config, encoder = objective.model.config, objective.model.speech_encoder
    rows, ids = list(range(size)), torch.arange(size)
    samples = max(round(seconds * SAMPLE_RATE), encoder.frame_samples)
    if not kept:
        side = config.vision_config.image_size
        with mode:
            waveforms, pixels = torch.empty(size, samples), torch.empty(size, 3, side, side)
        frame = round(encoder.frame_seconds * SAMPLE_RATE)
        return Batch(waveforms, _mask(size, samples, frame), pixels, ids, rows)
    frames, layers = int(encoder.frames(torch.tensor(samples))), len(encoder.layers)
    half = torch.float16
    with mode:
        states = torch.empty(
            (layers, size, frames, config.speech_config.hidden_size),
            dtype=torch.bfloat16 if arithmetic == "bf16" else half,
        )
        vectors = torch.empty(size, config.projection_dim, dtype=half)
        patches = torch.empty(size, config.patch_grid**2, config.vision_config.hidden_size, dtype=half)
    return FeatureBatch(states, _mask(size, frames, 1), vectors, patches, ids, rows)


def count_step(
    steps: Steps,
    objective: Objective,
    batches: Sequence[TrainingBatch],
    weights: Mapping[str, float],
    *,
    clip_norm: float,
    arithmetic: Arithmetic,
    as_accelerator: bool,
) -> StepCount:
    """Takes one optimiser step, as training does, and counts; of real tensors as of fake ones.

    Args:
        steps: of ``objective``, on the processor; its optimiser has taken no step.
        objective: in training mode.
        batches: whose gradients are averaged.
        weights: of the tasks.
        clip_norm: as in the recipe.
        arithmetic: of the training.
        as_accelerator: count what an accelerator would do in the processor's place: its attention kernel, its choice
            of types, its optimiser. Else the processor's own.
    """
    parameters = list(objective.parameters())
    if as_accelerator:
        plain_dropout(objective)
    for group in steps.optimizer.param_groups:
        group["foreach"] = as_accelerator
    held = [*parameters, *objective.buffers()]
    inputs = [value for batch in batches for value in _fields(batch) if isinstance(value, Tensor)]
    flops = FlopCounterMode(display=False, custom_mapping=_PROCESSOR_ATTENTION)
    live = _LiveBytes(parameters, known=[*held, *inputs])
    ways = _AsAccelerator() if as_accelerator else attention_kernel("cpu", arithmetic == "bf16")
    with ways, flops, live, _MasksToPlaces():
        for number, batch in enumerate(batches, 1):
            steps.gradients(batch, weights, last=number == len(batches))
        gradients = sum(_bytes(parameter.grad) for parameter in parameters if parameter.grad is not None)
        before = live.most
        torch.nn.utils.clip_grad_norm_(parameters, clip_norm, foreach=as_accelerator)
        steps.optimizer.step()
    live.close()
    moments = sum(
        _bytes(value)
        for state in steps.optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    )
    of_batch = sum(map(_bytes, inputs)) // len(batches)
    # The first step of an optimiser makes its moments; before any other they are there.
    most = max(before, live.most - moments)
    return StepCount(
        flops=flops.get_total_flops(),
        weights=sum(map(_bytes, held)),
        gradients=gradients,
        optimizer=moments,
        activations=live.most_activations + of_batch,
        peak=sum(map(_bytes, held)) + moments + most + of_batch,
    )


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that are made within a ``with`` block, as long as they live.

    Args:
        parameters: whose gradients are told from the rest.
        known: tensors that are not to be counted, nor what looks into them.

    Attributes:
        most: the most bytes at once.
        most_activations: the same without the gradients of parameters.
    """

    def __init__(self, parameters: Sequence[Tensor], known: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = self.most_activations = 0
        self._live = self._gradients = 0
        self._sizes: dict[int, int] = {}
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._with_gradient: set[Tensor] = set()
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(self._note_gradient)  # type: ignore[no-untyped-call]
            for parameter in parameters
            if parameter.requires_grad
        ]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._note, made)
        return made

    def close(self) -> None:
        """Leaves the parameters as they were."""
        for hook in self._hooks:
            hook.remove()

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes or key in self._known:
            return
        self._sizes[key] = storage.nbytes()
        self._live += storage.nbytes()
        self.most = max(self.most, self._live)
        self.most_activations = max(self.most_activations, self._live - self._gradients)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._live -= self._sizes.pop(key)

    def _note_gradient(self, parameter: Tensor) -> None:
        if parameter not in self._with_gradient and parameter.grad is not None:
            self._with_gradient.add(parameter)
            self._gradients += _bytes(parameter.grad)


class _MasksToPlaces(TorchFunctionMode):
    """Picks a fake tensor's rows by a mask's true places: what they are is known, and of a fake mask it were not."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__ and isinstance(args[0], FakeTensor):
            mask = args[1]
            if isinstance(mask, Tensor) and mask.dtype == torch.bool and not isinstance(mask, FakeTensor):
                args = (args[0], mask.nonzero(as_tuple=True))
        return func(*args, **(kwargs or {}))


class _AsAccelerator(TorchFunctionMode):
    """Lets the processor's own rules count as an accelerator's.

    Its fused attention kernels drop out, too, and keep no matrix of attention; the processor's does the same when
    nothing is dropped. And CUDA's autocast computes norms in fp32, so that their outputs are.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is functional.scaled_dot_product_attention:
            args, kwargs["dropout_p"] = args[:4], 0.0
        elif func in (functional.layer_norm, functional.group_norm):
            args = (args[0].float(), *args[1:])
        return func(*args, **kwargs)


def _mask(size: int, length: int, shorter: int) -> Tensor:
    """[B, length], True but for the end of the last row, where that leaves anything."""
    mask = torch.ones(size, length, dtype=torch.bool)
    mask[-1, max(length - shorter, 1) :] = False
    return mask


def _fields(batch: TrainingBatch) -> Iterator[Any]:
    return (getattr(batch, name) for name in batch.__dataclass_fields__)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
