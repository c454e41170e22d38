"""Taking up a run that has ended by an incident: may it be, from where, and who is told if not."""
