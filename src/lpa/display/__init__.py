"""What people see: the terminal, lines of the log, and HTML pages."""
