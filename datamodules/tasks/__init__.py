"""The built-in tasks, a YAML file each, as users write them; `task_utils` reads them. Imports nothing."""
