"""Every value that crosses the border of a process, each defined once. Pure: structs, names and layouts."""
