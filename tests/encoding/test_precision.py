"""In which arithmetic a training computes: what it was told, or what the chip has."""

from __future__ import annotations

import pytest
import torch

from saysee.encoding.precision import arithmetic_of


@pytest.fixture
def chips(monkeypatch):
    """Says which chips have bf16: of the processor AVX-512 or AMX, and CUDA; gives what CUDA was asked."""
    asked = []

    def says(avx512=False, amx=False, cuda=False):
        def supported(including_emulation=True):
            asked.append(including_emulation)
            return cuda or including_emulation

        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
        return asked

    return says


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
@pytest.mark.parametrize("has", [False, True])
def test_a_precision_that_is_named_is_taken_at_its_word(device, has, chips):
    chips(has, has, has)
    assert arithmetic_of("fp32", device) == "fp32"
    assert arithmetic_of("bf16", device) == "bf16"


@pytest.mark.parametrize(
    ("avx512", "amx", "found"),
    [(False, False, "fp32"), (True, False, "bf16"), (False, True, "bf16"), (True, True, "bf16")],
)
def test_auto_on_a_processor_is_bf16_only_where_it_has_instructions_for_it(avx512, amx, found, chips):
    chips(avx512, amx, cuda=not (avx512 or amx))
    assert arithmetic_of("auto", "cpu") == found


@pytest.mark.parametrize(("has", "found"), [(False, "fp32"), (True, "bf16")])
def test_auto_on_cuda_is_bf16_only_where_the_chip_need_not_emulate_it(has, found, chips):
    asked = chips(avx512=not has, amx=not has, cuda=has)
    assert arithmetic_of("auto", "cuda") == found
    assert asked == [False]


def test_auto_on_any_other_accelerator_is_fp32(chips):
    chips(True, True, True)
    assert arithmetic_of("auto", "mps") == "fp32"


def test_this_machine_is_asked_without_harm():
    assert arithmetic_of("auto", "cpu") in ("fp32", "bf16")
