"""A trainer that imports torch and ends: the least that any trainer does."""

import torch  # noqa: F401
