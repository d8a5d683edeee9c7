"""The guard: the process on a host that owns slots and all processes in them. It starts, watches, ends and logs them.

It never imports an engine or the worker package; the entry point of a worker is named by a string.
"""
