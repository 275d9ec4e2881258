"""What is to be edited: prompt pairs, categories, sets, files, rules, the grammar of region phrases. No torch."""
