"""Scores outputs against reference labels: the official metrics, frame F1, a report. Never imports torch."""
