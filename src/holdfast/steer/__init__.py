"""Steering: restoring at inference time the refusals that an image switches off."""
