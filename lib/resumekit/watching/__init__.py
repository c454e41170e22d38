"""Looking at live runs: which of them is sick, and by what evidence."""
