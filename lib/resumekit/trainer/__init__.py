"""What runs inside the trainer; the only modules that import torch."""
