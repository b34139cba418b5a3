"""The HTTP routes, one file a group; each validates, makes the one scoring call and shapes the reply."""
