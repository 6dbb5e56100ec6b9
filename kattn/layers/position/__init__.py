"""Where the steps are: alone, or as `position=` of an attention layer."""
