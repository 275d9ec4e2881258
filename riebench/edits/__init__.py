"""This is what is edited: prompt pairs, categories, sets, files, rules, the grammar of region phrases. No torch."""
