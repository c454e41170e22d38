"""What is tried on the kit for hours, and what judges it; README.md says what each part is.

The campaigns are run from the repo's root, `python -m reliability.campaign_saves --seed 1`.
"""

import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
sys.path.extend(
    path for part in ("tests", "examples/hrm_arc", "lib") if (path := str(_ROOT / part)) not in sys.path
)  # as pytest.ini has it
