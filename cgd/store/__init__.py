"""Where results are kept: a Zarr store whose artifacts are sealed, digested and never overwritten."""
