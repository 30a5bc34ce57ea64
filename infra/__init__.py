"""Where it runs: Modal, its images, volumes and doors."""
