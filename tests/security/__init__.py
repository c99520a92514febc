"""Bad inputs, one test per row of the table in docs/bad-inputs.md."""
