"""evaluation: see the map of the house in the README."""
