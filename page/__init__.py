"""One group of a run with every number: what a run records of it, and the page that shows it."""
