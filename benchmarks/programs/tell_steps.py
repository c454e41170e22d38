"""A trainer that tells a step some times a second, for so long: `python -u tell_steps.py STEPS_PER_SECOND SECONDS`."""

import sys
import time

per_second, seconds = float(sys.argv[1]), float(sys.argv[2])
started = time.monotonic()
step = 0
while time.monotonic() - started < seconds:
    step += 1
    print(f"step {step} loss {1 / step:.6f} lr 0.001", flush=True)
    time.sleep(1 / per_second)
