"""What a comparison shows: the page, its charts, and the terminal's tables."""
