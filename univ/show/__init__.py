"""Results for people: long tables -> figures, a summary, an HTML report."""
