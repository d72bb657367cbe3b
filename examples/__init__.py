"""Run files for each family of tasks, and worked examples of what users add; no product code imports them."""
