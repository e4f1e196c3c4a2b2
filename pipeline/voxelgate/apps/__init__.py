"""Where people come in: the command line, the label server, the demo."""
