"""Response formats as objects: how a response shows where its thought ends and its solution begins.

One object parses what a model wrote, renders what it is to learn, and cuts that to the thought (`scope: thought`).
"""
