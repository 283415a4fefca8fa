"""Makes the neighbouring helpers importable."""

import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
ENGINE_TESTS = HERE.parents[2] / "pangu_jax" / "inference"
sys.path[:0] = [str(HERE), str(ENGINE_TESTS)]
