"""Every room stands on this one: errors, files, registries, progress, keys. It knows nothing of diffusion."""
