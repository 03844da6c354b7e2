"""Ways to combine teachers, one file each: of similarities, (K, B, B) to (B, B)."""
