"""Live runs looked at, sick ones stopped, dead ones taken up again."""
