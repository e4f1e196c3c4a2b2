"""How a network is run, whether its labels are then the same, and as which file it leaves."""
