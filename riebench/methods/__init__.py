"""Ways of editing: what a method sees of a case, how features are chosen, and how they are moved."""
