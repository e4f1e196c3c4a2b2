"""The commands of the command line, one a module, each with an `app`; `main` imports the one that is run."""
