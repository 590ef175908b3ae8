"""What is known of a chip: its peak rate by name, and memory that is planned, used and there."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class Peak(NamedTuple):
    """Dense TFLOP/s of matrix products on what JAX calls one device."""

    bfloat16: float
    """Summed in float32."""
    float32: float | None = None
    """TensorFloat-32, in which JAX multiplies float32 on these GPUs unless told otherwise. None
    where no such figure is published: TPUs multiply float32 in passes of bfloat16."""


PEAKS: Mapping[str, Peak] = MappingProxyType(
    {
        "NVIDIA A100": Peak(312.0, 156.0),
        "NVIDIA H100": Peak(989.4, 494.7),
        "NVIDIA H100 PCIe": Peak(756.0, 378.0),
        "NVIDIA H100 NVL": Peak(835.5, 417.5),
        "NVIDIA H200": Peak(989.4, 494.7),
        "NVIDIA H200 NVL": Peak(835.5, 417.5),
        "NVIDIA GH200": Peak(989.4, 494.7),
        "NVIDIA B200": Peak(2250.0, 1100.0),
        "NVIDIA GB200": Peak(2500.0, 1250.0),
        "NVIDIA L4": Peak(121.0, 60.0),
        "NVIDIA GeForce RTX 4090": Peak(165.2, 82.6),
        "TPU v4": Peak(275.0),
        "TPU v5 lite": Peak(197.0),
        "TPU v5e": Peak(197.0),
        "TPU v5": Peak(459.0),
        "TPU v5p": Peak(459.0),
        "TPU v6 lite": Peak(918.0),
        "TPU v6e": Peak(918.0),
        "TPU7x": Peak(1153.5),  # A chip of 2,307 is two devices.
    }
)
"""By `device_kind`, from the vendors' data sheets, without sparsity."""

_CUTS = ("NVIDIA GeForce RTX 4090 ", "TPU v4 lite")
"""Other chips whose names go on like one of the table."""


def peak_tflops(device_kind: str, dtype: str) -> float | None:
    """Peak of one device; None for one that is not in the table.

    Args:
        device_kind: as JAX names it; it may go on after a name of the table, such as
            "NVIDIA H100 80GB HBM3" or "NVIDIA A100-SXM4-40GB". The longest name wins.
        dtype: "bfloat16" or "float32".
    """
    if device_kind.startswith(_CUTS) or " MIG " in device_kind:  # Parts of a GPU.
        return None
    known = [
        name
        for name in PEAKS
        if device_kind.startswith(name) and not device_kind[len(name) :][:1].isalnum()
    ]
    if not known or dtype not in Peak._fields:
        return None
    return getattr(PEAKS[max(known, key=len)], dtype)


class Planned(NamedTuple):
    """Bytes on each device by the compiler's plan of a program."""

    arguments: int
    temporary: int
    total: int
    """Both, and the results that take no argument's place."""


def planned(compiled: Any) -> Planned:
    """What a compiled program (`jax.jit(f).lower(...).compile()`) will take; zeros if unknown."""
    plan = compiled.memory_analysis()
    if plan is None:
        return Planned(0, 0, 0)
    arguments, temporary = plan.argument_size_in_bytes, plan.temp_size_in_bytes
    # A donated argument and the result in its place count once.
    fresh = plan.output_size_in_bytes - plan.alias_size_in_bytes
    return Planned(arguments, temporary, arguments + temporary + fresh)


def peak_bytes(device: Any) -> int | None:
    """Most memory that was ever in use on a device; None where it keeps no count, as on CPU."""
    return (device.memory_stats() or {}).get("peak_bytes_in_use")


def limit_bytes(device: Any) -> int | None:
    """Memory that may be used on a device; None where nobody says, as on CPU."""
    return (device.memory_stats() or {}).get("bytes_limit")


class Work(NamedTuple):
    """What a step asks of each device, to tell how well its time is used."""

    tflop: float
    """Of the model as published, forward and backward (`cost.train_flops`)."""
    peak: float | None
    """TFLOP/s of a device, None where it is not known."""
