"""Classification of volumes, and regression of a number of each: from data to report."""
