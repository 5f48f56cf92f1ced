"""The quickstart: a small model that sorts letters badly, and the run that teaches it.

`task` makes words, tokenizer, model and its weak start; `run` is what the person sees; `rewards` is what the embedded
service scores by. Imports nothing by itself, so that the service's workers load `rewards` without torch.
"""
