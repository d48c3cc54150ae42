"""Weight sync: how new weights reach the samplers, and how that is proved.

Importing this package loads neither torch nor vLLM. An update is a stream of payloads, plain dicts that vLLM hands to
its workers as they are. The key "transport" says who reads one, see `still_ray.weight_sync.transports`, but for two:

    {"transport": "end", "digests": {name: ...}}     checks that every parameter came, and as it was sent; the sampler
                                                     sends it, with the digests that the trainer took
    {"transport": "abort"}                           gives the update up; the sampler sends it
"""
