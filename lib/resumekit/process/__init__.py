"""The processes of a run: the trainer is started, followed and stopped."""
