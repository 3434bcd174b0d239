"""What is installed here, which GPU there is, what can be done with both, and what mends the rest."""
