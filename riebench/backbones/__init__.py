"""The models under test: a table of them, how each family of models is built, and loading."""
