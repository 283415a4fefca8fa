"""Model FLOPs utilisation: the model's own FLOPs over what the devices could do.

MFU = tokens per second * model FLOPs per token / (devices * peak FLOP/s of one). The FLOPs are
`DecoderConfig.flops_per_token`: forward and backward, the causal half of attention, nothing for
recomputation. The peak is the data sheet's dense bfloat16 figure by device name; for a device that
is not in the table (a CPU, for one) no MFU is given.
"""

from __future__ import annotations

# Device kind as JAX names it (its beginning) -> dense bfloat16 FLOP/s of one JAX device.
PEAK_FLOPS = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA A100": 312e12,
    "TPU v4": 275e12,
    "TPU v5p": 459e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Peak of one device in FLOP/s, by the longest matching name; None where it is unknown."""
    found = [name for name in PEAK_FLOPS if device_kind.startswith(name)]
    return PEAK_FLOPS[max(found, key=len)] if found else None


def utilisation(
    tokens_per_second: float, flops_per_token: float, device_kind: str, devices: int
) -> dict[str, float]:
    """{'tflops_per_second_per_device': ..., 'mfu': ... where the peak is known}."""
    rate = tokens_per_second * flops_per_token / devices
    values = {"tflops_per_second_per_device": rate / 1e12}
    peak = peak_flops(device_kind)
    if peak is not None:
        values["mfu"] = rate / peak
    return values
