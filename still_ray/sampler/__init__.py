"""Samplers: engines that turn prompts into responses and report which weights made them.

Importing this package loads neither torch nor vLLM; `still_ray.sampler.vllm_sampler` does so when an engine is built.
"""
