"""Run folders read back: which there are, what has happened in one, how it stands."""
