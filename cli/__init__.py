"""The `dgad` command. The only place that prints. Nothing heavy is imported before a command runs."""
