"""Steering methods: one file a paper (the table is :data:`holdfast.steer.method.STEERING`)."""
