"""The commands that are about Modal. `processor.cli` finds each by its dotted path, when it is called."""
