"""HTML pages that explain an archive or show search results."""
