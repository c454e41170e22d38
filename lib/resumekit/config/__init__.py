"""config.yaml read, resolved, checked and hashed."""
