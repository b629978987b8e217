"""The verbs that join the rooms: what the command line and Python users call."""
