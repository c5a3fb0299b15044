"""Protect faces in photos from recognisers, and measure how well that works."""
