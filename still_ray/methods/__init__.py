"""The built-in training methods, one module each, free of torch.

What a method must say of itself is `still_ray.config.methods.Method`, where they are found by name the table beside it.
How a method trains is in the module of the same name in `still_ray.trainer.methods`.
"""
