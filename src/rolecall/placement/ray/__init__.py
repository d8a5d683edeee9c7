"""Ray: guards in actors of placement groups."""
