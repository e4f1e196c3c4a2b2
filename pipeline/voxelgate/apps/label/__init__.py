"""Our MONAI Label app: annotate with a bundle, train it on what was annotated, and keep what is better.

`server` starts it. Modules that name `monailabel` need the environment that `make label` builds; the others (`guard`,
`ids`, `label_formats`, `label_names`, `model_versions`, `submitted`, `training_round`, `uncertainty`) are plain and
tested without it.
"""
