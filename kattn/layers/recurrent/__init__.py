"""Recurrent layers: attention in recurrences, over them, and recurrences without a loop."""
