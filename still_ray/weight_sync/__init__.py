"""Weight sync: how new weights reach the samplers, and how that is proved.

Importing this package loads neither torch nor vLLM. An update is a stream of payloads, plain dicts that vLLM hands to
its workers as they are:

    {"transport": "object_store", "bucket": uint8 array of one dimension, "specs": [{"name", "dtype", "shape",
     "offset", "nbytes"}, ...]}                      from `packing.Bucket.payload()`; any number of them
    {"transport": "checkpoint", "path": directory}   the worker streams the directory's safetensors files
    {"transport": "broadcast", "rendezvous": ..., "layouts": ..., "rank_offset": int, "timeout_s": float}
                                                     from `broadcast.payload()`; the worker meets the trainer
    {"transport": "end", "digests": {name: ...}}     checks that every parameter came, and as it was sent; the sampler
                                                     sends it, with the digests that the trainer took
    {"transport": "abort"}                           gives the update up; the sampler sends it
"""
