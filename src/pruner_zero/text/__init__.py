"""Text: a corpus by name, file or strings, cut into token windows."""
