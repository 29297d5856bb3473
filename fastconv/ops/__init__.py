"""The public operations: settle geometry, backend and dtype, allocate, call one kernel."""
