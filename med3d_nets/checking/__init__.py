"""Looks at every file of a data set before it is trained on, and reports what is wrong and what is odd."""
