"""Builds the API reference of the public modules into the folder that is named; a warning is an error."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pdoc

import rolecall

PUBLIC = ("rolecall", r"!rolecall\.scheduler", "rolecall.errors", "rolecall.testing")  # the subpackage is not public


def main(folder: str) -> None:
    warnings.simplefilter("error", UserWarning)  # a name or an annotation that does not resolve
    for name in rolecall.__all__:  # loaded when first used; pdoc looks only at what is there
        setattr(rolecall, name, getattr(rolecall, name))
    pdoc.render.configure(docformat="google")
    pdoc.pdoc(*PUBLIC, output_directory=Path(folder))


if __name__ == "__main__":
    main(sys.argv[1])
