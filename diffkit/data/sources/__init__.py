"""Sources of data, one file each: frozen options for Python, the command line and TOML; opening one reads the data.

Those of public modules have a name; a folder, archive or NumPy file is given by its path.
"""
