"""Training under DeepSpeed ZeRO, free of Ray: every rank of a trainer group calls a `worker.TrainerWorker`.

Importing this package loads nothing heavy; torch, DeepSpeed and TRL come in with `still_ray.trainer.worker`.
"""
