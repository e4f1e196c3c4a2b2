"""The commands of the command line, one a module, each with an `app`; `pipeline.cli` imports the one that is run."""
