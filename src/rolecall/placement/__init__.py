"""Where guards go, and nothing else. A backend places guards and never imports another one."""
