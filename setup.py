"""The part of the build that pyproject.toml cannot say yet: one extension, left out where no C compiler is."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension("rolecall.transport.codec._scan", ["src/rolecall/transport/codec/_scan.c"], optional=True),
    ]
)
