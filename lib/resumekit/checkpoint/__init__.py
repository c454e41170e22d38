"""Checkpoints looked at without torch: what is inside, is it whole, which one is taken."""
