"""The methods that every run compares with; each file is the example to copy for one's own."""
