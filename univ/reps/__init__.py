"""Representations: images, a model and a node -> (N, D), row i from image i; stored, cached, probed."""
