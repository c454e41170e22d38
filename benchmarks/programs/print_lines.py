"""A trainer that prints a million lines of 120 bytes, as fast as Python can.

    python -u print_lines.py START_FILE LINES lines     one print per line, unbuffered, as trainers do it
    python -u print_lines.py START_FILE LINES blocks    64 KiB at a time: nothing waits for the trainer

The monotonic time before the first line goes into START_FILE.
"""

import os
import sys
import time
from pathlib import Path

LINE_BYTES = 120
LAST_LINE = "the last line of them all"
BLOCK_LINES = 64 * 1024 // LINE_BYTES

start_file, count, manner = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
line = "step 123456 loss 1.2345 ".ljust(LINE_BYTES - 1, "x")
start_file.write_text(repr(time.monotonic()), encoding="utf-8")
if manner == "lines":
    for _ in range(count - 1):
        print(line)
else:
    block = (line + "\n").encode() * BLOCK_LINES
    for _ in range((count - 1) // BLOCK_LINES):
        os.write(1, block)
    os.write(1, (line + "\n").encode() * ((count - 1) % BLOCK_LINES))
print(LAST_LINE.ljust(LINE_BYTES - 1, "x"))
