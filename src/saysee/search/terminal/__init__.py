"""Search from the terminal: queries, the HTML sheet, the microphone."""
