"""Read a checkpoint's head and tail and do nothing with them.

python -I -S read_ends.py FILE HEAD_BYTES TAIL_BYTES
"""

import os
import sys

path, head_bytes, tail_bytes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
descriptor = os.open(path, os.O_RDONLY)
head = os.pread(descriptor, head_bytes, 0)
tail = os.pread(descriptor, tail_bytes, os.fstat(descriptor).st_size - tail_bytes)
os.close(descriptor)
if (len(head), len(tail)) != (head_bytes, tail_bytes):
    raise SystemExit("the file is shorter than that")
