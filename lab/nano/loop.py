"""The step loop that both pre-trainings share: schedule, log, checkpoints; a run that is killed goes on."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from saysee.encoding.precision import arithmetic_of
from saysee.errors import CheckpointError, ConfigError, SaySeeError
from saysee.files import write_text
from saysee.log import progress_bar
from saysee.training.attention_kernel import attention_kernel
from saysee.training.checkpoint import clean_folder, find_checkpoints, load_checkpoint, save_checkpoint

LOG_FILE, CHECKPOINTS = "log.jsonl", "checkpoints"
_BETAS = (0.9, 0.98)  # CLIP's (arXiv 2103.00020, appendix F) and HuBERT's (arXiv 2106.07447, section IV-C) alike


@dataclass(frozen=True)
class LoopSettings:
    """How long and how fast.

    Attributes:
        steps: optimiser steps. batch_size: items in a batch. lr: peak learning rate of AdamW (linear warm-up, then a
        cosine to 0). warmup_steps: steps of the warm-up. weight_decay: of matrices alone. clip_norm: the gradient's
        norm is clipped to this. evaluate_every: steps between figures on held-out data. checkpoint_every: steps
        between checkpoints. seed: of the weights, the order and the augmentation.
    """

    steps: int
    batch_size: int
    lr: float
    warmup_steps: int
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    evaluate_every: int = 250
    checkpoint_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses numbers that no run can have."""
        for name in ("steps", "batch_size", "evaluate_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"loop.{name} is {getattr(self, name)}; it must be at least 1")
        if self.seed < 0:
            raise ConfigError(f"loop.seed is {self.seed}; it must be at least 0")


def run_steps(
    name: str,
    folder: Path,
    model: nn.Module,
    settings: LoopSettings,
    loss_of: Callable[[int], tuple[Tensor, Mapping[str, Tensor | float]]],
    evaluate: Callable[[], dict[str, float]],
    whole: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Trains ``model`` in place, or goes on where the folder's last checkpoint was written.

    Steps are computed in bf16 where the chip has it, else in fp32, which the log's ``arithmetic`` tells; ``evaluate``
    is in fp32 always.

    Args:
        name: what the progress bar says.
        folder: of the log (one JSON object a line) and the checkpoints. On an accelerator, steps whose figures were
            asked for together have the same ``seconds``.
        model: all parts that are trained.
        settings: see :class:`LoopSettings`.
        loss_of: the loss of a step (0 is the first) with figures for the log, without gradient. It must draw what is
            random from the step's number, so that a resumed run takes the same steps.
        evaluate: figures on held-out data; called without gradient and in evaluation mode.
        whole: settings of the model and its data, as plain values; a run of others is refused too.

    Returns:
        The last figures, and the seconds that the steps took.

    Raises:
        CheckpointError: the folder's checkpoint is of other settings.
        SaySeeError: the loss or its gradient is not finite.
    """
    checkpoints, log = folder / CHECKPOINTS, folder / LOG_FILE
    folder.mkdir(parents=True, exist_ok=True)
    clean_folder(checkpoints)
    device = next(model.parameters()).device.type
    fused = True if device == "cuda" else None
    optimizer = torch.optim.AdamW(_groups(model, settings), betas=_BETAS, fused=fused)
    done, seconds, lines = 0, 0.0, list[dict[str, Any]]()
    state = _last_checkpoint(folder, settings, whole)
    if state is not None:
        model.load_state_dict(state["model"])
        for group in state["optimizer"]["param_groups"]:
            group["fused"] = fused  # the run may have begun on another device
        optimizer.load_state_dict(state["optimizer"])
        done, seconds = state["step"], state["seconds"]
        lines = [line for line in _read_log(log) if line["step"] <= done]
    # What a kill left behind the checkpoint (all of it where there is none) is done, and logged, again.
    write_text(log, "".join(json.dumps(line) + "\n" for line in lines))
    arithmetic = arithmetic_of("auto", device)
    bf16 = arithmetic == "bf16"
    waiting = list[dict[str, Any]]()
    model.train()
    with progress_bar(name, settings.steps) as bar, log.open("a", encoding="utf-8") as writer:
        bar.advance(done)
        while done < settings.steps:
            started = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * schedule(done, settings)
            with torch.autocast(device, torch.bfloat16, enabled=bf16), attention_kernel(device, bf16):
                loss, figures = loss_of(done)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            done += 1
            evaluates, keeps = (
                done == settings.steps or done % every == 0
                for every in (settings.evaluate_every, settings.checkpoint_every)
            )
            waiting.append({"step": done, "loss": loss.detach(), "gradient_norm": norm, **figures})
            due = evaluates or keeps or len(waiting) >= _settled_every(device)
            settled = [_settled(line) for line in waiting] if due else []
            waiting = waiting[len(settled) :]
            seconds += time.perf_counter() - started
            for line in settled:
                _refuse_infinite(name, line)
                line |= {"seconds": round(seconds, 2), "arithmetic": arithmetic}
                if evaluates and line["step"] == done:
                    model.eval()
                    with torch.no_grad():
                        line |= evaluate()
                    model.train()
                writer.write(json.dumps(line) + "\n")
            writer.flush()
            lines += settled
            bar.advance()
            if keeps:
                state = {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": done,
                    "seconds": seconds,
                    "settings": asdict(settings),
                    "whole": whole,
                }
                save_checkpoint(checkpoints, done, state, keep=1)
    model.eval()
    return {**(lines[-1] if lines else {"step": done}), "seconds": seconds}


def refuse_other_run(folder: Path, settings: LoopSettings, whole: dict[str, Any] | None = None) -> None:
    """Refuses at once what :func:`run_steps` would refuse when it comes to this folder; arguments as there.

    Raises:
        CheckpointError: the folder's checkpoint is of other settings.
    """
    _last_checkpoint(folder, settings, whole)


def _last_checkpoint(folder: Path, settings: LoopSettings, whole: dict[str, Any] | None) -> dict[str, Any] | None:
    found = find_checkpoints(folder / CHECKPOINTS)
    if not found:
        return None
    state = load_checkpoint(found[-1])
    if state["settings"] != asdict(settings) or state.get("whole", whole) != whole:
        raise CheckpointError(f"{folder} holds a run of other settings; give another --to, or remove it")
    return state


def schedule(step: int, settings: LoopSettings) -> float:
    """The share of ``lr`` at a step: a line up, then half a cosine down to 0."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    passed = (step - settings.warmup_steps) / max(settings.steps - settings.warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * passed))


def _settled_every(device: str) -> int:
    """Steps whose figures are asked for together. An accelerator that is asked after each would idle till the next."""
    return 1 if device == "cpu" else 20


def _settled(line: Mapping[str, Any]) -> dict[str, Any]:
    """The line with plain numbers in place of tensors, for which an accelerator finishes its work."""
    return {name: value if isinstance(value, int) else round(float(value), 4) for name, value in line.items()}


def _refuse_infinite(name: str, line: Mapping[str, Any]) -> None:
    for what, value in (("loss", line["loss"]), ("gradient's norm", line["gradient_norm"])):
        if not math.isfinite(value):
            raise SaySeeError(f"{name}: the {what} is {value} at step {line['step']}; lower loop.lr")


def _groups(model: nn.Module, settings: LoopSettings) -> list[dict[str, Any]]:
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    plain = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    return [
        {"params": decayed, "lr": 0.0, "weight_decay": settings.weight_decay},
        {"params": plain, "lr": 0.0, "weight_decay": 0.0},
    ]


def _read_log(log: Path) -> list[dict[str, Any]]:
    """The lines that are whole: a kill may have broken off the last."""
    lines = []
    for text in log.read_text(encoding="utf-8").splitlines() if log.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines
