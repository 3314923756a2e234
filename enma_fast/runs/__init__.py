"""Runs of many members by many processes: their plan, their shares, and statistics on the way."""
