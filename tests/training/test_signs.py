from __future__ import annotations

from saysee.training.records import find_signs


def test_a_reconstruction_that_needs_both_sides_shows_no_sign() -> None:
    metrics = {
        "reconstruction_loss": 1.0,
        "reconstruction_without_clean": 1.5,
        "reconstruction_without_noisy": 1.2,
        "contrastive_loss": 2.0,
        "attention_lift": 1.5,
    }
    assert find_signs(metrics, previous_contrastive=2.5, progress=0.9) == {}


def test_each_failure_shows_its_own_sign() -> None:
    good = {"reconstruction_loss": 1.0, "reconstruction_without_clean": 1.5, "reconstruction_without_noisy": 1.5}
    assert set(find_signs(good | {"reconstruction_without_clean": 1.01}, None, 0.1)) == {"fusion_ignores_clean"}
    assert set(find_signs(good | {"reconstruction_without_noisy": 0.9}, None, 0.1)) == {"fusion_ignores_noisy"}
    assert set(find_signs({"contrastive_loss": 2.0}, 2.01, 0.1)) == {"contrastive_plateau"}
    assert set(find_signs({"attention_lift": 1.0}, None, 0.6)) == {"attention_off_object"}


def test_attention_is_not_judged_before_half_of_the_training() -> None:
    assert find_signs({"attention_lift": 1.0}, None, 0.4) == {}


def test_a_baseline_without_denoising_is_not_judged_on_it() -> None:
    assert find_signs({"contrastive_loss": 1.0}, 2.0, 1.0) == {}


def test_a_task_is_trivial_when_it_is_solved_early_and_stays_so() -> None:
    solved = {"reconstruction_loss": 0.3, "reconstruction_chance": 4.0}
    assert set(find_signs(solved, None, 0.3)) == {"task_trivial"}
    assert find_signs(solved | {"reconstruction_loss": 0.5}, None, 0.3) == {}
    assert find_signs(solved, None, 0.9) == {}
    assert set(find_signs(solved, None, 0.9, ["task_trivial"])) == {"task_trivial"}
