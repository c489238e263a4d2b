"""Recall: old turns are found again, and put back into the context when they matter."""
