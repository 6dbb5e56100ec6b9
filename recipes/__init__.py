"""One runnable file per task: `python -m recipes.<task> --help`."""
