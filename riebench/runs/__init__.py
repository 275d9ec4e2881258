"""A run, from a configuration to a folder with scores, images, summary and report."""
