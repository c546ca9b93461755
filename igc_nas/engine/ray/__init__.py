"""Workers as actors on a Ray cluster. Imported by `engine.search` when it is asked for; needs the extra `ray`."""
