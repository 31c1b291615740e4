"""The commands of `erg`, one file each; only `erg.cli` imports them, by name."""
