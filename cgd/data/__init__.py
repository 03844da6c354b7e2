"""Images: lists of them, their pixels, their views, and which ones meet in a batch."""
