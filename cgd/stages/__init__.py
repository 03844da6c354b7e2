"""What is done: each stage reads artifacts, calls pure code and writes artifacts."""
