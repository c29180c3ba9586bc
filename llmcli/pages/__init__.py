"""Pages for a browser, each a single file that asks for nothing."""
