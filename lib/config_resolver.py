"""Entry point for users: resolve a config and write down what a run used (protocol §13).

Try it: `python lib/config_resolver.py --config config.yaml --logdir /tmp/look --set training.batch_size=8`
"""

import gc
import os
import sys

_LIB = os.path.dirname(os.path.realpath(__file__))
# Last, not first: a trainer's own config.py or schema.py must never be hidden by what stands beside this file.
sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry) != _LIB] + [_LIB]

from resumekit.config.config import config_hash, load_config, override, resolve, write_resolved  # noqa: E402
from resumekit.config.resolver import main  # noqa: E402

__all__ = ["config_hash", "load_config", "main", "override", "resolve", "write_resolved"]

if __name__ == "__main__":
    gc.disable()  # a process of 0.1 s: collecting would take a tenth of it and free nothing
    raise SystemExit(main())
