"""Networks: encoders, the layers they share, and their weights."""
