"""From what a person typed to what will be done, and why; nothing is touched yet."""
