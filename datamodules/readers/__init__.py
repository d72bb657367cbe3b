"""Files and hub data sets to rows. Imports task_utils and the floors below it."""
