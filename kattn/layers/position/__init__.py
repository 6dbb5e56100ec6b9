"""Position layers: called alone, or given to an attention layer as `position=`."""
