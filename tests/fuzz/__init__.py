"""Random packages against the model room; `make fuzz` runs many, `make test` a few."""
