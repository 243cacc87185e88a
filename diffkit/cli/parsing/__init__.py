"""From the words of a command line and a config file to typed options, by cyclopts."""
