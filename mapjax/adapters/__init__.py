"""Real models and data; each module is imported by name and may need an extra."""
