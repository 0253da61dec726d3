"""SQLite through sqlite-utils: the truth that every index is rebuilt from."""
