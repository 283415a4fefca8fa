"""Data for every package above this one: pinned wheels as a source of files."""

from pangu_jax.data.wheel import (
    PINNED_WHEELS,
    WheelError,
    WheelHashError,
    WheelSpec,
    WheelUnavailableError,
    cache_dir,
    check_cached,
    fetch_member,
    fetch_wheel,
    locked,
)

__all__ = [
    "PINNED_WHEELS",
    "WheelError",
    "WheelHashError",
    "WheelSpec",
    "WheelUnavailableError",
    "cache_dir",
    "check_cached",
    "fetch_member",
    "fetch_wheel",
    "locked",
]
