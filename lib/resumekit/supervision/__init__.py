"""A run made, started, watched and ended."""
