"""What the tests share: one subject in a module. The modules whose name ends with `_trainer` are run as trainers."""

from pathlib import Path

import pytest

# Before they are imported: an assertion in one of them then shows both sides, as one in a test does.
pytest.register_assert_rewrite(*(f"{__name__}.{path.stem}" for path in Path(__file__).parent.glob("[a-z]*.py")))
