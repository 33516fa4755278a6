"""What a run will take before it is started: operations, memory, time and days, on this machine or a described cluster.

Pure functions over a model's shape and plain numbers; `process` and `on_cluster` put them together for a recipe.
"""
