"""config.yaml read, resolved, checked and hashed, and what a change of a key costs."""
