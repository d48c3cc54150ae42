"""Raw rows become demonstrations and problems: what each task does; `still_ray.actors.prepare` runs them on Ray."""
