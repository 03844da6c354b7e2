"""The students, one file each."""
