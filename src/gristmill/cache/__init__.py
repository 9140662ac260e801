"""The plan store: measurements and the plans derived from them, in memory above SQLite."""
