"""AReaL's proxy imports this for the dialect of Anthropic, which no test speaks."""
