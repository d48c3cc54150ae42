"""Training on Ray: the Ray Train group, the stages it is handed, and how its weights reach the replicas."""
