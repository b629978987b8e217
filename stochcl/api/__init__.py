"""The Python functions behind the commands, which connect the other rooms."""
