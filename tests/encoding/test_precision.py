"""The precision to compute in: the one that is set, or what the device has instructions for."""

from __future__ import annotations

import pytest
import torch

from saysee.encoding.precision import arithmetic_of


@pytest.fixture
def devices(monkeypatch):
    """Sets which devices have bf16: the CPU by AVX-512 or AMX, and CUDA; returns how CUDA was asked."""
    asked = []

    def have(avx512=False, amx=False, cuda=False):
        def supported(including_emulation=True):
            asked.append(including_emulation)
            return cuda or including_emulation

        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
        return asked

    return have


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
@pytest.mark.parametrize("has", [False, True])
def test_a_precision_that_is_set_is_kept(device, has, devices):
    devices(has, has, has)
    assert arithmetic_of("fp32", device) == "fp32"
    assert arithmetic_of("bf16", device) == "bf16"


@pytest.mark.parametrize(
    ("avx512", "amx", "found"),
    [(False, False, "fp32"), (True, False, "bf16"), (False, True, "bf16"), (True, True, "bf16")],
)
def test_auto_on_a_cpu_is_bf16_only_where_it_has_instructions_for_it(avx512, amx, found, devices):
    devices(avx512, amx, cuda=not (avx512 or amx))
    assert arithmetic_of("auto", "cpu") == found


@pytest.mark.parametrize(("has", "found"), [(False, "fp32"), (True, "bf16")])
def test_auto_on_cuda_is_bf16_only_where_the_gpu_need_not_emulate_it(has, found, devices):
    asked = devices(avx512=not has, amx=not has, cuda=has)
    assert arithmetic_of("auto", "cuda") == found
    assert asked == [False]


def test_auto_on_any_other_accelerator_is_fp32(devices):
    devices(True, True, True)
    assert arithmetic_of("auto", "mps") == "fp32"


def test_auto_finds_a_precision_on_this_machine():
    assert arithmetic_of("auto", "cpu") in ("fp32", "bf16")
