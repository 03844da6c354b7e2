"""Ways to combine teachers, one file each."""
