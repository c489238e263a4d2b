"""Recall: old turns found again."""
