"""What a stream showed, in words: observations, the backlog that holds them, and who writes the summaries."""
