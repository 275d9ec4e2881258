"""Seeing and editing what a model computes while it generates."""
