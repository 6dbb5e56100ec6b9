"""Kattn beside its peers: one file a question, one backend a process."""
