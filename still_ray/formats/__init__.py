"""What goes into the model and what comes out: prompts and chat templates, the thought/solution form, dataset rows.

Everything here is cheap to import: a tokenizer is taken as an object, never loaded, and pyarrow only for Parquet files.
"""
