"""Reading: files of interactions as checked columns, and what is wrong with a file, to the line and column."""
