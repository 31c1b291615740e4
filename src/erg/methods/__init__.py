"""One file a method, nothing else in the folder. `erg.catalog` finds them."""
