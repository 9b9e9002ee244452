"""How far a run is and what it has seen."""

from __future__ import annotations

from typing import Any, Literal

from saysee.training.log_records import peak_memory_mib


class RunCount:
    """Steps, clips, seconds, scores and signs of a run: plain values, part of every checkpoint."""

    def __init__(self) -> None:
        self.step = 0
        self.clips = 0
        self.seconds = 0.0
        self.best_recall = -1.0
        self.best_step = 0
        self.worse_evaluations = 0
        self.stopped_early = False
        self.recall: float | None = None
        self.previous_contrastive: float | None = None
        self.signs: list[str] = []
        self.mid_epoch = False
        self.told_bad_files = 0
        self._log_sums: dict[str, list[float]] = {}
        self._interval_sums: dict[str, list[float]] = {}

    def state_dict(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what :meth:`state_dict` gave."""
        vars(self).update(state)

    def count(self, figures: dict[str, float], clips: int, seconds: float) -> None:
        """Adds a step."""
        self.step += 1
        self.clips += clips
        self.seconds += seconds
        self.mid_epoch = True
        for sums in (self._log_sums, self._interval_sums):
            for key, value in figures.items():
                total = sums.setdefault(key, [0.0, 0.0])
                total[0] += value
                total[1] += 1

    @property
    def clips_per_second(self) -> float:
        """Over the whole run, without evaluation."""
        return self.clips / self.seconds if self.seconds else 0.0

    def take_log_means(self) -> dict[str, float]:
        """Means of the figures since the last log line."""
        sums, self._log_sums = self._log_sums, {}
        return {key: total / count for key, (total, count) in sums.items()}

    def take_interval_means(self) -> dict[str, float]:
        """Means of the losses since the last evaluation."""
        sums, self._interval_sums = self._interval_sums, {}
        return {key: total / count for key, (total, count) in sums.items() if key.endswith("loss")}

    def judge(self, recall: float, patience: int, best_by: Literal["recall", "step"]) -> bool:
        """Notes an evaluation's mean R@1, in percent; True when its model is the best so far."""
        self.recall = recall
        if best_by == "step" or recall > self.best_recall:
            self.best_recall, self.best_step, self.worse_evaluations = recall, self.step, 0
            return True
        self.worse_evaluations += 1
        self.stopped_early = bool(patience) and self.worse_evaluations >= patience
        return False

    def result(self, bad_files: list[tuple[str, str]]) -> dict[str, Any]:
        """What a finished run says of itself."""
        return {
            "steps": self.step,
            "stopped_early": self.stopped_early,
            "best_step": self.best_step,
            "best_val_mean_R@1": self.best_recall,
            "training_seconds": self.seconds,
            "seconds_per_step": self.seconds / max(self.step, 1),
            "clips": self.clips,
            "clips_per_second": self.clips_per_second,
            "peak_memory_mib": peak_memory_mib(),
            "signs_at_the_end": self.signs,
            "skipped_files": [{"path": path, "reason": reason} for path, reason in bad_files],
        }
