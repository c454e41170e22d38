"""A trainer that does nothing: what is left is the launcher's own time."""
