"""The decision to scale up: what must exist, what it scores, and what follows."""
