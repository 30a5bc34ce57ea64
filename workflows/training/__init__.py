"""Training presets: one YAML file each; docs/training.md describes their fields."""
