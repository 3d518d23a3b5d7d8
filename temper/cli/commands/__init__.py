"""What each command does, one file each. `temper/cli/main.py` declares the options and imports these when used."""
