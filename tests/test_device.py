import warnings

import pytest
import torch

from lpa.device import fast_dtype, peak_flops, peak_flops_by_name, resolve_device, resolve_dtype
from lpa.errors import LPAWarning, UserError


@pytest.mark.parametrize("name", ["", "gpu", "meta", "cpu:x", "cuda:99", "vulkan", "CPU"])
def test_a_device_that_cannot_compute_is_refused(name):
    with pytest.raises(UserError, match=f"device: got {name!r}; .*expected auto, cpu"):
        resolve_device(name)


def test_a_device_that_can():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda")


@pytest.mark.parametrize(
    ("name", "visible", "local_rank", "expected"),
    [
        ("auto", 0, 0, "cpu"),
        ("auto", 0, 3, "cpu"),
        ("auto", 1, 0, "cuda:0"),
        ("auto", 8, 5, "cuda:5"),
        ("cpu", 8, 5, "cpu"),
        ("cuda", 8, 0, "cuda:0"),
        ("cuda", 8, 5, "cuda:5"),
        ("cuda", 1, 5, "cuda:0"),  # the launcher shows each process its own
        ("cuda:1", 2, 0, "cuda:1"),
        ("cuda", 0, 0, None),
        ("cuda", 2, 5, None),
        ("cuda:2", 2, 0, None),
        ("cuda:0", 8, 1, None),  # all processes on one
    ],
)
def test_each_process_has_one_device_and_touches_no_other(
    monkeypatch, name, visible, local_rank, expected
):
    current = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    if expected is None:
        with pytest.raises(UserError, match=f"device: got '{name}'"):
            resolve_device(name, local_rank=local_rank)
        return
    device = resolve_device(name, local_rank=local_rank)
    assert device == torch.device(expected)
    assert current == ([device] if device.type == "cuda" else [])


@pytest.fixture
def other_machine(monkeypatch):
    """Lets torch find other units in the CPU, and a GPU: `other_machine(cpu={…}, gpu=None)`."""

    def become(*, cpu: dict | None = None, gpu: bool | None = None) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu or {})
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu)
        fast_dtype.cache_clear()

    yield become
    fast_dtype.cache_clear()


@pytest.mark.parametrize(
    ("device_type", "cpu", "gpu", "expected"),
    [
        ("cpu", {"avx512_bf16": True}, None, "bfloat16"),
        ("cpu", {"amx_bf16": True, "amx_fp16": True}, None, "bfloat16"),
        ("cpu", {"bf16": True, "fp16": True}, None, "bfloat16"),  # ARM
        ("cpu", {"avx2": True, "avx512_bf16": False}, None, "float32"),
        ("cpu", {"avx512_fp16": True, "amx_fp16": True}, None, "float32"),
        ("cpu", {}, True, "float32"),  # whatever the GPU beside it has
        ("cuda", {}, True, "bfloat16"),
        ("cuda", {"avx512_bf16": True}, False, "float32"),
        ("cuda", {}, None, "bfloat16"),  # planned here, run elsewhere
        ("mps", {"bf16": True}, None, "float32"),
        ("xpu", {"amx_bf16": True}, None, "float32"),
    ],
)
def test_auto_is_bfloat16_where_the_device_has_units_for_it(
    other_machine, device_type, cpu, gpu, expected
):
    other_machine(cpu=cpu, gpu=gpu)
    assert resolve_dtype("auto", device_type) == getattr(torch, expected)
    for name in ("float32", "bfloat16"):  # who names one gets it
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LPAWarning)
            assert resolve_dtype(name, device_type) == getattr(torch, name)


@pytest.mark.parametrize(
    ("device_type", "cpu", "gpu", "name", "warned_of"),
    [
        ("cpu", {"avx2": True}, None, "bfloat16", "CPU"),
        ("cpu", {"avx2": True}, True, "bfloat16", "CPU"),
        ("cuda", {}, False, "bfloat16", "GPU"),
        ("cpu", {"avx2": True}, None, "float32", None),
        ("cpu", {"avx2": True}, None, "auto", None),
        ("cpu", {"amx_bf16": True}, None, "bfloat16", None),
        ("cuda", {}, True, "bfloat16", None),
        ("cuda", {}, None, "bfloat16", None),  # planned here, run elsewhere
        ("mps", {}, None, "bfloat16", None),  # of which it is not known
    ],
)
def test_bfloat16_without_units_for_it_is_warned_of(
    other_machine, recwarn, device_type, cpu, gpu, name, warned_of
):
    other_machine(cpu=cpu, gpu=gpu)
    resolve_dtype(name, device_type)
    said = [str(warning.message) for warning in recwarn]
    expected = (
        f"dtype: bfloat16 is slower than float32 on this {warned_of}, which does not support it "
        "natively"
    )
    assert said == ([expected] if warned_of else [])


@pytest.mark.parametrize("name", ["", "float16", "half", "bf16", "float64", "int8", "Auto"])
def test_other_precisions_are_refused(name):
    with pytest.raises(UserError, match=f"dtype: got {name!r}; expected auto, float32 or bfloat16"):
        resolve_dtype(name, "cpu")


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA B200", 2250),
        ("NVIDIA H200", 989.4),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("A100-PCIE-40GB", 312),
        ("NVIDIA A10G", 70),
        ("NVIDIA A10", 125),
        ("NVIDIA L4", 121),
        ("NVIDIA L40", 181),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 3090", 71),
        ("NVIDIA GeForce RTX 4090", 165.2),
    ],
)
def test_dense_peak_of_bfloat16(name, tera):
    assert peak_flops_by_name(name, torch.bfloat16) == pytest.approx(tera * 1e12)


def test_the_peak_of_float32_is_unknown_where_torch_may_round_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    device = torch.device("cuda")
    assert peak_flops(device, torch.float32) == 67e12
    torch.set_float32_matmul_precision("high")
    try:
        assert peak_flops(device, torch.float32) is None
        assert peak_flops(device, torch.bfloat16) == 989.4e12
    finally:
        torch.set_float32_matmul_precision("highest")


def test_other_types():
    assert peak_flops_by_name("NVIDIA H100 80GB HBM3", torch.float32) == 67e12
    assert peak_flops_by_name("Tesla V100-SXM2-16GB", torch.float32) == 15.7e12
    assert peak_flops_by_name("Tesla V100-SXM2-16GB", torch.bfloat16) is None
    assert peak_flops_by_name("NVIDIA A100-SXM4-80GB", torch.int8) is None


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce GTX 1080",
        "AMD Instinct MI300X",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
    ],
)
def test_what_is_unknown_has_no_peak(name):
    assert peak_flops_by_name(name, torch.bfloat16) is None


def test_a_cpu_has_no_peak():
    assert peak_flops(torch.device("cpu"), torch.float32) is None


@pytest.mark.parametrize("name", ["mps", "xpu", "cpu:1", "meta", "gpu", ""])
def test_only_what_training_computes_on_is_a_device(name):
    """Others are known to torch, and some lack float64, in which losses are added up."""
    with pytest.raises(UserError, match=rf"device: got {name!r}; expected auto, cpu"):
        resolve_device(name)
