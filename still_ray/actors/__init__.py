"""Everything that runs on Ray: replicas, verifiers, the Ray Data pipeline, the Ray Train group, and the session around.

The only package that imports ray. Each actor is a thin shell over a plain class of a lower layer.
"""
