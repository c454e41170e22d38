"""What a resumed run is held against: what it should do, and what its journal shows."""
