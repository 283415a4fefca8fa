"""The measured process of a paired timing: it warms up, then does as many steps as it is told.

The other end is `Side` of benchmarks/pretrain_step.py: one line of JSON after RESULT for what is
told, one number of steps per line of input. Standard library only, for any environment.
"""

import json
import resource
import sys
import time


def tell(values):
    """Says something to the process that measures."""
    print("RESULT " + json.dumps(values), flush=True)


def warm_up(step, count):
    """Losses of `count` steps, and the seconds that the first one took."""
    losses, first = [], 0.0
    for index in range(count):
        started = time.perf_counter()
        losses.append(step())
        if index == 0:
            first = time.perf_counter() - started
    return losses, first


def answer_turns(step, evaluate=None):
    """Times `step` as often as each line of the input says; `evaluate` for a negative number."""
    for line in sys.stdin:
        count = int(line)
        run = step if count > 0 else evaluate
        seconds, cpu = [], time.process_time()
        for _ in range(abs(count)):
            started = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - started)
        tell(
            {
                "seconds": seconds,
                "cpu_seconds": time.process_time() - cpu,
                "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            }
        )
