"""Pages that explain an archive, or show what a search found."""
