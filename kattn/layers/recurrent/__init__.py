"""Recurrent layers: attention inside of recurrences and over them, and parallel recurrences."""
