"""From a request to a run folder that is ready for its trainer: search, choice, plan, report, folder."""
