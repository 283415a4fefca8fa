"""Puts this folder on the path for `kernel_arguments.py`."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
