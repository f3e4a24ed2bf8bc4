"""The report of a run as one HTML page: curves, tables and pictures of what training left."""
