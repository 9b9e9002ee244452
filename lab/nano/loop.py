"""The training loop of both encoders: schedule, log, checkpoints, and resuming an interrupted run."""

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

from saysee.encoding.precision import arithmetic_of, attention_kernel
from saysee.errors import CheckpointError, ConfigError, SaySeeError
from saysee.files import clean_folder, write_text
from saysee.log import progress_bar
from saysee.training.checkpoint import find_checkpoints, load_checkpoint, save_checkpoint

LOG_FILE, CHECKPOINTS = "log.jsonl", "checkpoints"
_BETAS = (0.9, 0.98)  # CLIP's (arXiv 2103.00020, appendix F) and HuBERT's (arXiv 2106.07447, section IV-C) alike


@dataclass(frozen=True)
class LoopSettings:
    """Length and optimization of a run.

    Attributes:
        steps: optimizer steps.
        batch_size: items in a batch.
        lr: peak learning rate of AdamW; linear warm-up, then a cosine to 0.
        warmup_steps: steps of the warm-up.
        weight_decay: of matrices only.
        clip_norm: the norm of the gradient is clipped to this.
        evaluate_every: steps between evaluations on held-out data.
        checkpoint_every: steps between checkpoints.
        seed: of the weights, the order of the data and the augmentation.
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
        """Raises ConfigError for a number that no run can have."""
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
    """Trains ``model`` in place, from the folder's last checkpoint if there is one.

    Steps are computed in bf16 where the hardware has it, else in fp32; the log has it as ``arithmetic``. ``evaluate``
    always runs in fp32.

    Args:
        name: title of the progress bar.
        folder: of the log (one JSON object a line) and the checkpoints. On a GPU, steps whose metrics were fetched
            together have the same ``seconds``.
        model: all parts that are trained.
        settings: see :class:`LoopSettings`.
        loss_of: the loss of a step (0 is the first) and metrics for the log, without gradient. It must seed what is
            random with the number of the step, so that a resumed run takes the same steps.
        evaluate: metrics on held-out data; called without gradient and in evaluation mode.
        whole: settings of the model and its data, as plain values; a checkpoint must have the same.

    Returns:
        The last metrics, and the seconds that the steps took.

    Raises:
        CheckpointError: the folder's checkpoint was written with other settings.
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
    # Steps after the last checkpoint are repeated, and logged again.
    write_text(log, "".join(json.dumps(line) + "\n" for line in lines))
    arithmetic = arithmetic_of("auto", device)
    bf16 = arithmetic == "bf16"
    waiting = list[dict[str, Any]]()
    model.train()
    with progress_bar(name, settings.steps, done) as bar, log.open("a", encoding="utf-8") as writer:
        while done < settings.steps:
            started = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * schedule(done, settings)
            with torch.autocast(device, torch.bfloat16, enabled=bf16), attention_kernel(device, bf16):
                loss, metrics = loss_of(done)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            done += 1
            evaluates, saves = (
                done == settings.steps or done % every == 0
                for every in (settings.evaluate_every, settings.checkpoint_every)
            )
            waiting.append({"step": done, "loss": loss.detach(), "gradient_norm": norm, **metrics})
            due = evaluates or saves or len(waiting) >= _fetch_every(device)
            fetched = [_plain(line) for line in waiting] if due else []
            waiting = waiting[len(fetched) :]
            seconds += time.perf_counter() - started
            for line in fetched:
                _check_finite(name, line)
                line |= {"seconds": round(seconds, 2), "arithmetic": arithmetic}
                if evaluates and line["step"] == done:
                    model.eval()
                    with torch.no_grad():
                        line |= evaluate()
                    model.train()
                writer.write(json.dumps(line) + "\n")
            writer.flush()
            lines += fetched
            bar.update()
            if saves:
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


def check_same_run(folder: Path, settings: LoopSettings, whole: dict[str, Any] | None = None) -> None:
    """Checks the folder as :func:`run_steps` does, before the long work; arguments as there.

    Raises:
        CheckpointError: the folder's checkpoint was written with other settings.
    """
    _last_checkpoint(folder, settings, whole)


def _last_checkpoint(folder: Path, settings: LoopSettings, whole: dict[str, Any] | None) -> dict[str, Any] | None:
    found = find_checkpoints(folder / CHECKPOINTS)
    if not found:
        return None
    state = load_checkpoint(found[-1])
    if state["settings"] != asdict(settings) or state.get("whole", whole) != whole:
        raise CheckpointError(f"{folder} holds a run with other settings; give another --to, or remove it")
    return state


def schedule(step: int, settings: LoopSettings) -> float:
    """Share of ``lr`` at a step: linear warm-up, then half a cosine to 0."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    passed = (step - settings.warmup_steps) / max(settings.steps - settings.warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * passed))


def _fetch_every(device: str) -> int:
    """Steps whose metrics are fetched together. A GPU that is asked after each step idles until the next."""
    return 1 if device == "cpu" else 20


def _plain(line: Mapping[str, Any]) -> dict[str, Any]:
    """The line with numbers in place of tensors; a GPU finishes its work for that."""
    return {name: value if isinstance(value, int) else round(float(value), 4) for name, value in line.items()}


def _check_finite(name: str, line: Mapping[str, Any]) -> None:
    for what, value in (("loss", line["loss"]), ("gradient norm", line["gradient_norm"])):
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
    """The complete lines: a kill may have cut the last."""
    lines = []
    for text in log.read_text(encoding="utf-8").splitlines() if log.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines
