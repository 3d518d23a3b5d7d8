"""What each command does, one file each. `temper/cli.py` declares the options and imports these when used."""
