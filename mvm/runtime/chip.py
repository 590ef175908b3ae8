"""A chip's peak rate by its name, and memory planned, used and available."""

from typing import Any

PEAKS: dict[str, tuple[float, float | None]] = {
    "NVIDIA A100": (312.0, 156.0),
    "NVIDIA H100": (989.4, 494.7),
    "NVIDIA H100 PCIe": (756.0, 378.0),
    "NVIDIA H100 NVL": (835.5, 417.5),
    "NVIDIA H200": (989.4, 494.7),
    "NVIDIA H200 NVL": (835.5, 417.5),
    "NVIDIA GH200": (989.4, 494.7),
    "NVIDIA B200": (2250.0, 1100.0),
    "NVIDIA GB200": (2500.0, 1250.0),
    "NVIDIA L4": (121.0, 60.0),
    "NVIDIA GeForce RTX 4090": (165.2, 82.6),
    "TPU v4": (275.0, None),
    "TPU v5 lite": (197.0, None),
    "TPU v5e": (197.0, None),
    "TPU v5": (459.0, None),
    "TPU v5p": (459.0, None),
    "TPU v6 lite": (918.0, None),
    "TPU v6e": (918.0, None),
    "TPU7x": (1153.5, None),  # A chip of 2,307 is two devices.
}
"""Dense TFLOP/s of a device by `device_kind`, from the vendors' data sheets: bfloat16 summed in
float32, and TensorFloat-32, in which JAX multiplies float32 on GPUs; TPUs take passes of
bfloat16."""


def peak_tflops(device_kind: str, dtype: str) -> float | None:
    """Peak of a device in "bfloat16" or "float32"; None if it is not in the table.

    JAX's name may go on after one of the table ("NVIDIA H100 80GB HBM3"); the longest wins.
    """
    known = [n for n in PEAKS if (device_kind + " ").startswith((n + " ", n + "-"))]
    return PEAKS[max(known, key=len)][dtype == "float32"] if known else None


def planned(compiled: Any) -> tuple[int, int]:
    """Temporary memory of a compiled program and all, bytes on each device; zeros if unknown."""
    plan = compiled.memory_analysis()
    if plan is None:
        return 0, 0
    # A donated argument and the result in its place count once.
    fresh = plan.output_size_in_bytes - plan.alias_size_in_bytes
    temporary = plan.temp_size_in_bytes
    return temporary, plan.argument_size_in_bytes + temporary + fresh


def peak_bytes(device: Any) -> int | None:
    """Most memory ever in use on a device; None on CPU, which keeps no count."""
    return (device.memory_stats() or {}).get("peak_bytes_in_use")
