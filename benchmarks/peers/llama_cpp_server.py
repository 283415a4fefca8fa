"""llama.cpp's server over a GGUF file, until its input ends.

Runs inside an environment of its own (`pip install xllamacpp==2026.10.11549`); called by
benchmarks/inference_smollm2.py. Prints one READY line with the address.
"""

import argparse
import importlib.metadata
import json
import os
import sys

import xllamacpp

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--parallel", type=int, required=True)
parser.add_argument("--context", type=int, default=2048, help="per request")
arguments = parser.parse_args()

parameters = xllamacpp.CommonParams()
parameters.model.path = arguments.model
parameters.n_ctx = arguments.context * arguments.parallel
parameters.n_parallel = arguments.parallel
parameters.cpuparams.n_threads = len(os.sched_getaffinity(0))
server = xllamacpp.Server(parameters)
print(
    "READY "
    + json.dumps(
        {
            "address": server.listening_address,
            "peer": f"xllamacpp {importlib.metadata.version('xllamacpp')}",
            "threads": parameters.cpuparams.n_threads,
        }
    ),
    flush=True,
)
sys.stdin.read()
