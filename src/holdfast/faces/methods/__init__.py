"""Mask methods, one file a paper."""
