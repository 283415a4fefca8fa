"""What the processes of a benchmark find in their environment: huge pages, and MKL's own path.

Our side gets what launch.py gives it (`pangu_jax.huge_pages`). PyTorch multiplies with MKL, which
takes a slower path on processors that are not Intel's; `intel_mkl` makes it take the one that it
takes there, so that a machine of AMD can say what a peer would do on one of Intel with the same
instructions.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess

from pangu_jax.huge_pages import with_huge_pages

HUGE_PAGES = ("ours", "all", "none")


def huge_pages() -> dict[str, str]:
    """Additions for a process that launch.py would have started."""
    wanted = with_huge_pages(os.environ) or {}
    return {name: value for name, value in wanted.items() if os.environ.get(name) != value}


def intel_mkl(folder: pathlib.Path) -> dict[str, str]:
    """Additions that tell MKL, loaded as a shared library, that it runs on Intel's processor.

    Args:
      folder: for the few bytes that say so.

    Raises:
      SystemExit: no C compiler.
    """
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise SystemExit("--mkl=intel needs a C compiler (cc, or what CC names).")
    source, library = folder / "mkl.c", folder / "mkl.so"
    source.write_text("int mkl_serv_intel_cpu_true(void) { return 1; }\n")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    return {"LD_PRELOAD": str(library)}
