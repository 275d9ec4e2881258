"""Grounders for photographs: one small file a model, each with `load(device, **settings)`. They wrap transformers."""
