"""The networks that score, a file each; a network describes itself."""
