import pytest

from pangu_jax.training.utilisation import peak_flops, utilisation


@pytest.mark.parametrize(
    ("kind", "want"),
    [
        ("NVIDIA H200", 989e12), ("NVIDIA A100-SXM4-80GB", 312e12), ("TPU v5p", 459e12),
        ("TPU v5 lite", 197e12), ("cpu", None),
    ],
)  # fmt: skip
def test_peaks_by_device_name(kind, want):
    assert peak_flops(kind) == want


def test_utilisation_by_hand():
    # 1,000 tokens/s of 6e9 FLOPs on two devices: 3 TFLOP/s each.
    got = utilisation(1000.0, 6e9, "NVIDIA H200", 2)
    assert got == {"tflops_per_second_per_device": 3.0, "mfu": pytest.approx(3e12 / 989e12)}
    assert "mfu" not in utilisation(1000.0, 6e9, "cpu", 1)
