"""All that travels to the Hub with a model, flat: it imports nothing else of the package."""
