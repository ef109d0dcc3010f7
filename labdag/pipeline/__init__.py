"""What DVC says: stages, what they depend on, why they are stale, their revisions and workspaces."""
