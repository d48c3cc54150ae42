"""Pools of actors on the cluster's nodes: starting, losing and replacing them, and telling a hang from slow work."""
