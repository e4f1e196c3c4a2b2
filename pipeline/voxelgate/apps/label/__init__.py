"""Our MONAI Label app: annotate with a bundle, train it on what was annotated, and keep what is better.

`server` starts it. Modules that name `monailabel` need the environment that `make label` builds; the others (`names`,
`submitted`, `meaning`, `files`, `label_files`, `versions`, `rounds`, `doubt`, `guard`) are plain and tested without it.
"""
