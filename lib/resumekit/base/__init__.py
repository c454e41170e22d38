"""What everything else stands on: files, paths, processes, claims, errors, the journal."""
