"""The networks that score. A network says what it is in a file that imports no torch, and loads itself when asked."""
