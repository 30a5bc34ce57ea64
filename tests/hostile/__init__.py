"""Input that means harm: each way in, and the control that holds it (docs/security.md)."""
