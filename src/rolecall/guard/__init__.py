"""The process on a host that owns slots and every process in them: starts, watches, kills, logs.

It never imports an engine, and nothing here imports the worker package: a worker's entry is named by a string.
"""
