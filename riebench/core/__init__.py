"""What every room stands on: errors, files, registries, progress, keys. Knows nothing of diffusion."""
