"""Models as folders on disk: kattn's own, and those of other libraries, both ways."""
