"""One algorithm a file; `kattn.ops.attention` chooses."""
