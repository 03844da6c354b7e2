"""The teachers, one file each."""
